r"""Official weights to a work folder, and back. Neither torch nor pickle is used.

    python -m seem_jax.convert seem_focalt_v1.pt --config=configs/focalt.py --output=runs/focalt_v1
    python -m seem_jax.convert runs/focalt_v1 --reverse --output=focalt_v1.safetensors

The first form takes .pt files (also training states) and .safetensors files of SEEM and X-Decoder. Files
of v0 and v1 look alike: they are read as the configuration says, v1, or with --release=v0.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from absl import app, flags

from seem_jax.config import RELEASES, as_released
from seem_jax.config_flag import CONFIG, run_program
from seem_jax.convert.official_file import read_state

OUTPUT = flags.DEFINE_string("output", None, "work folder, or file with --reverse", required=True)
REVERSE = flags.DEFINE_bool("reverse", False, "from a work folder to an official safetensors file")
STEP = flags.DEFINE_integer("step", None, "with --reverse: the step; the newest good one if absent")
RELEASE = flags.DEFINE_enum(
    "release",
    None,
    sorted(RELEASES),
    "of the file; if absent, demo where it looks so, else as --config says",
)


def run(source: str, output: str) -> None:
    """Converts `source` as the flags say and prints what became of every name."""
    if REVERSE.value:
        from seem_jax.convert import work_folder

        count = work_folder.reverse(source, output, STEP.value)
        print(f"wrote {count} tensors to {output}")
        return
    if CONFIG.value is None:
        raise ValueError(
            "--config is missing: give the configuration of the model, as in configs/."
        )
    begin = time.perf_counter()
    # A hostile file is refused here, before the second that importing JAX takes.
    state = read_state(source)
    from seem_jax import kept_files
    from seem_jax.convert import recognise, work_folder

    kind, config = recognise.recognise(state), CONFIG.value
    release = RELEASE.value or ("demo" if kind.is_demo else None)
    if release:
        config.model.decoder = as_released(config.model.decoder, release)
    try:
        report = work_folder.convert(state, config, output)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    print(f"{source}: {report.kind}, {report.num_tensors} tensors")
    if report.kind.family == "SEEM":
        print(f"  read as {recognise.release_of(config) or 'no official release'} (--release)")
    for title, names in (
        ("left out, SEEM has no use for it", report.left_out),
        ("not in the file, initialised", report.fresh),
    ):
        for name in names:
            print(f"  {title}: {name}")
    print(
        f"wrote {report.num_parameters / 1e6:.2f} M parameters to {output} "
        f"in {time.perf_counter() - begin:.0f} s"
    )
    kept = Path(output) / kept_files.TOKENIZER
    if not kept.is_file():
        print(
            f"the tokenizer is missing: there was none at {CONFIG.value.data.tokenizer}. Bring it with\n"
            f"  python -m data_prep.tokenizer --clip=bpe_simple_vocab_16e6.txt.gz --output={kept}"
        )


def main(argv: list[str]) -> int:
    if len(argv) != 2:
        raise app.UsageError(f"give one file (or work folder with --reverse), not {argv[1:]}")
    try:
        run(argv[1], OUTPUT.value)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_program(main)
