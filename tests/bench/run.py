"""`make bench`: the speed table, with other libraries and between our own methods."""

import sys

from rheo.scripts import bench

GROUPS = {  # in place of the program's own where they have its name, and beside them
    "env": ("bench_env", "measure"),
    "act": bench.GROUPS["act"],
    "update": ("bench_update", "measure"),
    **{
        name: (f"bench_{name}", "measure")
        for name in ("actor", "estimator", "data", "finetune", "steer", "variance", "startup")
    },
}

if __name__ == "__main__":
    sys.exit(bench.main(bench.asked(sys.argv[1:], GROUPS)))
