"""The talker at the paper's size: 512² images from HeadNeRF-sized networks.

    t3d prepare speaker.mp4 --out data/speaker --size 512
    t3d train --config talker --data data/speaker --workdir runs/speaker

Hardware: a GPU or TPU with 16 GB or more. Time and score: not yet measured.
`--config.paper=True` sets our additions back (README, "How it works: from paper to code").
"""

from ml_collections import ConfigDict


def stage(steps: int, batch_size: int, learning_rate: float, **more) -> ConfigDict:
    return ConfigDict(
        dict(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=min(200, steps // 10 + 1),
            validate_every=max(1, steps // 10),
            validation_batches=4,
            save_every=max(1, steps // 10),
            weight_decay=0.0,
            clip_norm=1.0,
            ema=0.0,
        )
        | more
    )


def get_config(paper: bool = False) -> ConfigDict:
    """The full-size config; `paper=True` is the paper to the letter where it says anything."""
    config = ConfigDict()
    config.seed = 0
    config.size = 512  # side of the images, pixels
    config.dtype = "float32"  # or bfloat16: of the networks' matrix products
    config.mel_steps = 16 if paper else 40  # length of LipNet's and StyleNet's window, 80 a second
    config.features = dict(  # what LipNet and StyleNet hear (README, "HuBERT or wav2vec …")
        file="",  # an .npy [T, D], {name} in it being the dataset's name; none: the mel
        rate=50.0,  # its steps a second
    )
    config.mesh = dict(  # devices along each axis; -1: all that are left (docs/scaling.md)
        population=1,  # members of a population
        data=-1,  # frames of a batch
        model=1,  # rays of a frame, and the parameters that the rules name
        rules=("codebook=model",),  # REGEX=AXIS, found in a parameter's path: split there
    )

    config.sync = dict(
        width=64,
        dim=256,
        judge_width=48,
        bce_weight=0.2,  # of Wav2Lip's own loss beside the contrast between windows
        augment=not paper,  # of faces and mel
    )
    config.lip = dict(
        width=64,
        bottleneck=32,
        dropout=0.0 if paper else 0.4,
        ears=1 if paper else 8,  # cross-fitting: each is deaf to one part of the training frames
        sync_weight=0.03,  # of Eq. 2, where SyncNet has proved itself on validation pairs:
        sync_proof=0.0 if paper else 0.75,  # share of them that it must tell in sync
        code_weight=0.0 if paper else 1.0,  # of the expression that the sound's code tells itself
        deaf_to_images=not paper,  # the lips' movement alone teaches what is heard
        normalise=not paper,  # hears bands in deviations from the voice's mean: not who speaks
        mixup=0.0 if paper else 0.4,  # of the sounds that teach it: α of the shares' Beta
        silence_weight=0.0 if paper else 0.1,  # of a closed mouth where nothing is heard
        drawn=1.0 if paper else 0.25,  # share of a batch whose images are drawn: sound is cheap
        noisy=0 if paper else 6,  # copies of the sound with noise, heard half of the time
        mouth_gain=0.0 if paper else 8.0,  # what the mouth weighs more in the L1 loss
    )
    config.prior = dict(
        width=64,
        lip_wav=not paper,  # also learns to read LipNet's images, which are tamer than real ones
        rendered=0 if paper else 2_000,  # heads with random codes that it also learns from
        shift=0.0 if paper else 0.08,  # most that a crop is moved and resized by, of its side
        roll=0.0 if paper else 8.0,  # degrees that a picture is rolled by at most
    )
    config.speech = dict(
        width=128,
        dropout=0.0 if paper else 0.2,
        inputs="disentangled",  # Table II: disentangled, speech, entire
        lip_weight=0.0 if paper else 300.0,  # of the lips' vertices (cm) beside Eq. 3
        leak_weight=0.0 if paper else 300.0,  # of lips (cm) that f_exp-style moves, not f_exp-aud
        swap=0.0 if paper else 0.5,  # share of sounds that come with another speaker's identity
        silence=not paper,  # some of the sounds are silence, in which the speaker is still
        style_weight=0.0 if paper else 0.01,  # keeps f_exp-style small: only what speech lacks
        smooth=0.0 if paper else 0.5,  # frames, deviation of the codes' smoothing at test time
        augment=not paper,
    )
    config.nerf = dict(
        rays=32,
        samples=64 if paper else 16,
        width=384,
        depth=8,
        skip=4,
        features=256,
        encoding="fourier" if paper else "planes",
        octaves=10,
        resolutions=(64, 256),
        channels=16,
        unit=18.0,  # cm that are 1 to F_θ's encoding
        pi=False,  # Fourier features at 2^k π, as NeRF prints them; its code and HeadNeRF: 2^k
        code_scale=0.25,  # of the shape codes (σ)
        density="softplus",  # or relu
        looks="feature",  # where codes of appearance enter F_θ: feature, or one layer later, colour
        colour=0,  # width of that last layer; 0: half the width, at least `features`
        backdrop="colour",  # behind the head: one colour of features, or a map of them
        spread="tile",  # of H_u's blocks' input over what they shuffle: tile, or nearest
        init="",  # start from converted weights (t3d convert headnerf), the --init of t3d train
        sampling="uniform" if paper else "shell",  # or heights: planes of equal z in the head
        near=-14.0,  # cm from the head's centre, for uniform sampling and heights
        far=14.0,
        chunk=65_536,  # points evaluated at once; 0: all
        remat="none",  # what backpropagation computes anew to save memory: none, all
        points="middle",  # where a sample lies in its interval: middle, or edge
        latent=0 if paper else 8,  # width of the per-frame code of what is not speech
        oracle=0.0 if paper else 0.5,  # share of f_exp-aud from real lower faces in training
        mouth_weight=0.0 if paper else 4.0,  # what the mouth weighs more in Eq. 6
        l1_weight=0.0 if paper else 0.1,
        gradient_weight=0.0 if paper else 0.1,
        mask_weight=0.0 if paper else 0.1,  # opacity against the head mask
        hair=not paper,  # the 3DMM's surface has the hair that the masks' outlines show
        geometry_weight=0.0 if paper else 0.05,  # 3DMM depth and silhouette at random cameras
        paint_weight=0.0 if paper else 0.2,  # their colours there, guessed where no frame looks
        latent_weight=0.0 if paper else 1e-3,
    )
    config.au = dict(
        units=(10, 14, 20, 25, 26),
        dim=256,
        width=32,
        crop=not paper,  # the encoder looks at the lower part of the face alone
        shift=0.0 if paper else 0.04,  # most that a frame is moved and resized by, of its side
        even=not paper,  # AUs, and frames with an AU on and off, weigh alike in Eq. 7 and 8
    )
    config.space = dict(
        au_codes=500,
        global_codes=1024,
        width=128,
        patch=16,
        use_au=True,  # Table III
        use_global=True,
        beta_au=0.25,  # β1 of Eq. 11
        beta_global=0.25,  # β2
        ema=0.0,  # over 0: codes are moving averages of their queries, of this decay (try 0.99)
        gradient_weight=0.0 if paper else 0.5,
        feature_weight=0.0 if paper else 3.0,  # what eyes and mouth weigh more in Eq. 11's L1
        renders=0.0 if paper else 0.5,  # share of the field's own renders among the inputs
        render_every=1,  # training frames from one render to the next
        filmed_mouths=not paper,  # in those renders; or the sound's, which differ from the frames'
    )
    config.stages = dict(
        sync=stage(20_000, 64, 1e-3),
        lip=stage(20_000, 64 if paper else 256, 1e-3),
        prior=stage(20_000, 64, 1e-3),
        speech=stage(10_000, 128, 1e-3),
        nerf=stage(60_000, 8, 2e-3),
        au=stage(5_000, 32, 1e-3),
        space=stage(40_000, 8, 1e-3),
    )
    return config
