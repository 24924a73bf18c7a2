"""What the networks hear: Wav2Lip's mel, syncnet_python's MFCC, and features made elsewhere.

All in numpy.
"""

from functools import cache

import numpy as np

RATE = 16000
MEL_RATE = 80  # mel steps a second
MFCC_RATE = 100  # MFCC steps a second
FFT, HOP, BANDS = 800, 200, 80  # of the mel: window and step in samples, and its bands
MEL_MEAN, MEL_DEVIATION = -1.7, 0.96  # of the mel of speech, about
SILENT = -3.2  # mean of a mel step's bands in which nobody speaks, at most
USUAL_STEPS = 80  # mel steps that what is known of a voice beforehand counts for


def mel(audio) -> np.ndarray:
    """Wav2Lip's mel spectrogram.

    audio: float [N] mono at 16 kHz in [-1, 1]. Returns float32 [1 + N // 200, 80] in [-4, 4], 80
    steps a second, step k centred on sample 200 k (the ends are reflected, as librosa 0.7 did).
    Source: Wav2Lip's audio.py and hparams.py (Prajwal et al. 2020).
    """
    audio = np.asarray(audio, np.float32)
    emphasised = audio - 0.97 * np.concatenate([np.zeros(1, np.float32), audio[:-1]])
    if len(emphasised) <= FFT // 2:  # reflection needs more than half a window
        emphasised = np.pad(emphasised, (0, FFT // 2 + 1 - len(emphasised)))
    padded = np.pad(emphasised, FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP]
    frames = frames[: 1 + len(audio) // HOP]
    magnitude = np.abs(np.fft.rfft(frames * _hann(FFT), axis=-1))
    decibel = 20 * np.log10(np.maximum(1e-5, magnitude @ _mel_filters().T)) - 20
    return np.clip(8 * (decibel + 100) / 100 - 4, -4, 4).astype(np.float32)


def noisy_mels(audio, count: int, rng: np.random.Generator) -> np.ndarray:
    """Mel spectrograms of a sound as other rooms and microphones would give them.

    Each has another gain (±4 dB) and noise, 3 to 25 dB under the sound, whose power falls with
    frequency between not at all (white) and as 1/f² (brown).

    Args:
        audio: float [N] mono at 16 kHz; count: K.

    Returns:
        float32 [K, M, 80], as `mel`.
    """
    audio = np.asarray(audio, np.float32)

    def one() -> np.ndarray:
        snr, fall = rng.uniform(3, 25), rng.uniform(0, 1)
        noise = coloured_noise(len(audio), fall, rng) * audio.std() * 10 ** (-snr / 20)
        return mel((audio + noise) * 10 ** (rng.uniform(-4, 4) / 20))

    return np.stack([one() for _ in range(count)])


def coloured_noise(length: int, fall: float, rng: np.random.Generator) -> np.ndarray:
    """Noise [length] of deviation 1 whose amplitude falls as frequency to the power −fall."""
    hertz = np.maximum(np.fft.rfftfreq(length, 1 / RATE), 20)
    spectrum = rng.normal(size=len(hertz)) + 1j * rng.normal(size=len(hertz))
    noise = np.fft.irfft(spectrum * hertz**-fall, length)
    return noise / max(noise.std(), 1e-12)


def mfcc(audio) -> np.ndarray:
    """The MFCCs that syncnet_python hears.

    audio: float [N] mono at 16 kHz in [-1, 1]. Returns float32 [M, 13], 100 steps a second, step k
    over samples 160 k to 160 k + 400, the first coefficient being the log energy. Source:
    python_speech_features 0.6 with its defaults, on sound at int16 scale.
    """
    audio = np.asarray(audio, np.float64) * 32768
    emphasised = np.append(audio[:1], audio[1:] - 0.97 * audio[:-1])
    count = 1 + max(0, -(-(len(audio) - 400) // 160))
    emphasised = np.pad(emphasised, (0, max(0, (count - 1) * 160 + 400 - len(audio))))
    frames = np.lib.stride_tricks.sliding_window_view(emphasised, 400)[::160][:count]
    power = np.abs(np.fft.rfft(frames, 512, axis=-1)) ** 2 / 512
    energies = _log(power @ _mfcc_filters().T)
    lifter = 1 + 11 * np.sin(np.pi * np.arange(13) / 22)
    cepstra = energies @ _cosines(26, 13).T * lifter
    cepstra[:, 0] = _log(power.sum(-1))
    return cepstra.astype(np.float32)


def mel_window(features, start: int, steps: int) -> np.ndarray:
    """Steps start … start + steps − 1 of features [M, C]; beyond the ends the last step repeats.

    Returns [steps, C]. Any start is legal.
    """
    index = np.arange(start, start + steps)
    return np.asarray(features)[np.clip(index, 0, len(features) - 1)]


def resample(features: np.ndarray, rate: float, steps: int) -> np.ndarray:
    """Features [T, D] whose step k is of the time k / rate, at the mel's times k / 80 s.

    Linear between steps; the last one repeats. Returns float32 [steps, D].
    """
    at = np.minimum(np.arange(steps) * rate / MEL_RATE, len(features) - 1)
    before = at.astype(int)
    after = np.minimum(before + 1, len(features) - 1)
    share = np.float32(at - before)[:, None]
    return np.float32((1 - share) * features[before] + share * features[after])


def scale_of(features: np.ndarray) -> np.ndarray:
    """Mean and deviation of each dimension of features [M, D]: float32 [2, D].

    A dimension that never changes has the deviation 1.
    """
    values = np.asarray(features, np.float64)
    mean, deviation = values.mean(0), values.std(0)
    constant = deviation <= 1e-6 * np.abs(mean)
    return np.stack([mean, np.where(constant, 1.0, deviation)]).astype(np.float32)


def voice_of(mel: np.ndarray, usual: np.ndarray | None = None) -> np.ndarray:
    """Mean and deviation of a mel's bands while somebody speaks: voice, microphone and room.

    What is left without them is what is said (cepstral mean and variance normalisation: Viikki and
    Laurila 1998).

    Args:
        mel: [M, 80] of a whole sound. Its louder half counts, and no silence.
        usual: [2, 80] what was found of a speaker before; counts for a second more of sound, and
            is what a silence is heard with.

    Returns:
        float32 [2, 80]; of a silence without `usual` that of speech in general.
    """
    level = mel.mean(1)
    loud = mel[level > max(SILENT, np.percentile(level, (5, 95)).mean())].astype(np.float64)
    mean, square = loud.sum(0), (loud**2).sum(0)
    count = len(loud)
    if usual is not None:
        count += USUAL_STEPS
        mean += USUAL_STEPS * usual[0]
        square += USUAL_STEPS * (usual[0] ** 2 + usual[1] ** 2)
    if not count:
        return any_voice(mel.shape[1])
    mean, square = mean / count, square / count
    deviation = np.sqrt(np.maximum(square - mean**2, 0.01))
    return np.stack([mean, deviation]).astype(np.float32)


def any_voice(width: int) -> np.ndarray:
    """[2, width] mean and deviation of the mel of speech, the same for all bands."""
    return np.repeat(np.float32([[MEL_MEAN], [MEL_DEVIATION]]), width, 1)


def standardise(features: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Features [M, D] with the mean and deviation of the mel, which the networks are made for.

    Args:
        scale: [2, D] of `scale_of`, over the training frames. Returns float32 [M, D].
    """
    mean, deviation = scale
    return np.float32(MEL_MEAN + MEL_DEVIATION * (features - mean) / deviation)


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.where(values == 0, np.finfo(np.float64).eps, values))


def _hann(length: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


@cache
def _mel_filters() -> np.ndarray:
    """[80, 401] triangles of equal area on Slaney's mel scale, 55 to 7600 Hz."""
    edges = _slaney_hertz(np.linspace(_slaney_mel(55.0), _slaney_mel(7600.0), BANDS + 2))
    bins = np.fft.rfftfreq(FFT, 1 / RATE)
    rise = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rise, fall)) * (2 / (edges[2:] - edges[:-2]))[:, None]


def _slaney_mel(hertz: float) -> float:
    """Linear to 1 kHz (200/3 Hz a mel), logarithmic above (27 mels for a factor of 6.4)."""
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)


def _slaney_hertz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))


@cache
def _mfcc_filters() -> np.ndarray:
    """[26, 257] triangles between whole bins on the HTK mel scale, 0 to 8000 Hz."""
    top = 2595 * np.log10(1 + 8000 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, 28) / 2595) - 1)
    edges = np.floor(513 * hertz / RATE)
    bins = np.arange(257)
    rise = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rise, fall))


@cache
def _cosines(inputs: int, outputs: int) -> np.ndarray:
    """[outputs, inputs] orthonormal DCT-II."""
    angle = np.pi * np.arange(outputs)[:, None] * (np.arange(inputs) + 0.5) / inputs
    scale = np.where(np.arange(outputs) == 0, np.sqrt(1 / inputs), np.sqrt(2 / inputs))
    return scale[:, None] * np.cos(angle)
