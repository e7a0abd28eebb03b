"""How the tests of the commands run them."""

from click.testing import CliRunner, Result

import cli
from tests.conftest import GOLDEN

CASE = GOLDEN / "ntk-256" / "one-image"
PICTURE = CASE / "a.png"


def vlm_trt(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments], input=stdin)
