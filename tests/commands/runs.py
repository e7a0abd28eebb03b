"""How the tests of the commands run them."""

from click.testing import CliRunner, Result

from tests.conftest import GOLDEN
from vlm_trt import cli

CASE = GOLDEN / "ntk-256" / "one-image"
PICTURE = CASE / "a.png"


def vlm_trt(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments], input=stdin)
