"""The package of toys is found as any installed package is."""


def test_commands_run_where_the_toys_are_installed(toy_cli):
    assert "vq-prior" in toy_cli("env").stdout
