"""Runs `tfds build` without Apache Beam: `python -m mllmsubj.data.tfds FOLDER_OF_A_BUILDER --manual_dir=…`.

The program `tfds` of TFDS 4.9.10 imports Beam for its other commands, and fails if it is not installed.
"""

from absl import app
from tensorflow_datasets.scripts.cli import build, cli_utils

if __name__ == "__main__":
    app.run(lambda args: args.execute(), flags_parser=cli_utils.make_flags_parser(build.Args, description=__doc__))
