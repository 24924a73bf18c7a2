"""Trains stages of an untrained run on meshes of this process's (or its job's) devices.

    python steps.py RUN DATA OUT PLAN [COORDINATOR PROCESSES PROCESS]

RUN holds random parameters of every stage; PLAN is "STAGE:NAME=DATAxMODEL,…;STAGE:…", the meshes of
each stage. It is trained from the same frozen parameters for 20 steps a mesh; the outcome goes to
OUT/NAME.
"""

import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from t3d import config as configs
from t3d import hosts, planning, run
from t3d.data.speaker_dataset import SpeakerDataset
from t3d.talker import STAGES
from t3d.train import sharding, trainer

BATCH = 4
OVERRIDES = [f"stages.{name}.steps=20" for name in STAGES]
OVERRIDES += [f"stages.{name}.batch_size={BATCH}" for name in STAGES]
OVERRIDES += [f"stages.{name}.save_every=0" for name in STAGES]
OVERRIDES += [f"stages.{name}.validate_every=0" for name in STAGES]


def main(workdir, data, out, plan, *job):
    if job:
        hosts.join(job[0], *map(int, job[1:]))
    config = configs.load_config("tiny", OVERRIDES)
    learner = run.Learner(config, [SpeakerDataset(data)], Path(workdir), Path(workdir) / "cache")
    for part in plan.split(";"):
        name, _, meshes = part.partition(":")
        prepared = learner.prepare(name)
        if "au" in prepared.training.frozen:
            prepared = with_features(prepared, learner)
        for text in meshes.split(","):
            title, _, sizes = text.partition("=")
            data_size, model_size = map(int, sizes.split("x"))
            devices = jax.devices()[: data_size * model_size]
            mesh = sharding.make_mesh(
                {"population": 1, "data": data_size, "model": model_size}, devices
            )
            training = replace(prepared.training, workdir=Path(out) / title)
            trainer.run(prepared.stage, training, mesh, config.mesh.rules, learner.log)


def with_features(prepared, learner):
    """The AU encoder as it is initialised: with parameters drawn by lot all faces look alike to
    it, and which code is nearest is decided by rounding errors."""
    made = learner.stage("au")
    batch = planning.abstract_batch(learner.config, made.fields, 1)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), batch)
    au = jax.device_get(jax.jit(made.init)(jax.random.key(0), zeros))
    frozen = prepared.training.frozen | {"au": au}
    return replace(prepared, training=replace(prepared.training, frozen=frozen))


if __name__ == "__main__":
    main(*sys.argv[1:])
