import pytest

from vq_prior.core import errors


@pytest.mark.parametrize(
    ("kind", "exit_code", "also"),
    [
        (errors.UsageError, 2, ValueError),
        (errors.ArtifactError, 3, ValueError),
        (errors.NumericError, 4, ArithmeticError),
        (errors.EnvironmentFault, 5, RuntimeError),
        (errors.Stopped, 75, Exception),
    ],
)
def test_each_kind_of_failure_has_the_exit_code_that_users_are_promised(kind, exit_code, also):
    assert kind.exit_code == exit_code
    assert issubclass(kind, errors.VQPriorError)
    assert issubclass(kind, also)
