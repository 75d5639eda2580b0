"""Follow a recipe in two processes whose parameters are sharded: `fsdp_on_cpu.py RECIPE OUT PORT`.

accelerate leaves FSDP to accelerators, so processes on the CPU are taken for those of two GPUs.
"""

import os
import sys
from pathlib import Path

import yaml
from accelerate import PartialState
from accelerate.utils import DistributedType

from reasonseg.training.recipe import load_recipe
from reasonseg.training.run import run_recipe
from tests.support.forked_runs import end, start


CONFIG = Path(__file__).parents[2] / "training" / "accelerate" / "fsdp.yaml"
_made = PartialState.__init__


def _made_as_if_on_gpus(self, *args, **kwargs):
    _made(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


def main(recipe: str, out: str, port: str) -> None:
    PartialState.__init__ = _made_as_if_on_gpus
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["fsdp_config"]
    os.environ |= {name.upper(): str(value).lower() for name, value in config.items() if isinstance(value, bool)}
    os.environ |= {name.upper(): str(value) for name, value in config.items() if not isinstance(value, bool)}
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}

    def follow(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        run_recipe(load_recipe(recipe), out)

    children = [start(lambda rank=rank: follow(rank)) for rank in range(2)]
    sys.exit(max(abs(end(child)) for child in children))


if __name__ == "__main__":
    main(*sys.argv[1:])
