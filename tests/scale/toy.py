"""A small stage that saves often, as a script: toy.py WORKDIR STEPS PAUSE DEVICES STOP."""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from t3d.train import sharding, trainer


def init(key, batch):
    return {"w": jax.random.normal(key, (batch["x"].shape[-1], 3))}


def loss(params, frozen, batch, key, step):
    noise = 0.05 * jax.random.normal(key, batch["x"].shape)
    return jnp.mean(((batch["x"] + noise) @ params["w"] - batch["x"][:, :3]) ** 2), {}


def train(
    workdir,
    steps,
    pause=0.0,
    devices=1,
    stop=None,
    width=16,
    save_every=0,
    log=lambda line: None,
):
    """Trains on so many devices, the parameters split over them; ends with KeyError at a step."""
    settings = dict(steps=steps, batch_size=8, learning_rate=1e-3, warmup_steps=0)
    settings |= dict(save_every=save_every, validate_every=0)
    stage = trainer.Stage("toy", ("x",), init, loss, ConfigDict(settings))

    def batches(step, rows):
        while step != stop:
            time.sleep(pause)
            x = np.random.default_rng(step).normal(size=(8, width)).astype(np.float32)
            yield {"x": x[rows]}
            step += 1
        raise KeyError("stopped")

    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    training = trainer.Training({}, batches, lambda rows: [], Path(workdir))
    return trainer.run(stage, training, mesh, ("w=data",), log)


if __name__ == "__main__":
    print("started", flush=True)
    workdir, steps, pause, devices, stop = sys.argv[1:]
    train(
        workdir,
        int(steps),
        pause=float(pause),
        devices=int(devices),
        stop=int(stop) or None,
        save_every=10,
        log=lambda line: print(line, flush=True),
    )
