"""Comparison of a whole configuration with stored numbers of the official release.

    python -m tests.parity --goldens DIR --manifests DIR [--seed N]

`report` compares and prints, `subject` builds the model that a file names, `decoding` runs the decoder
layer by layer, `settle` finds attention bits that a file does not hold, `following` says what a run
claims of stored predictions, `stages` and `losses` what each kind of file holds, `xdecoder` what that
model does otherwise. The formats are described in the README beside the manifests.
"""
