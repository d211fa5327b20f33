"""python -m tests.toy_cluster: tests.fake_cluster with the model of toy_model.py."""

import sys

from tests import fake_cluster, toy_model

if __name__ == "__main__":
    toy_model.install()
    fake_cluster.Told.pause = 0.2  # long enough to save and to be told something
    sys.exit(fake_cluster.main(sys.argv[1], *map(int, sys.argv[2:7]), *sys.argv[7:]))
