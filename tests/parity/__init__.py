"""Comparison of a whole configuration with stored numbers of the official release.

    python -m tests.parity --goldens DIR --manifests DIR [--seed N]

`report` compares and prints, `subject` builds the model that a file names, `decoding` runs the decoder
layer by layer, `stages` and `losses` say what each kind of file holds. The formats are described in the
README beside the manifests.
"""
