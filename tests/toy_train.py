"""python -m tests.toy_train: tests.fake_train with the model of toy_model.py."""

import sys

from tests import fake_train, toy_model

if __name__ == "__main__":
    toy_model.install()
    sys.exit(fake_train.main(sys.argv[1], *map(int, sys.argv[2:])))
