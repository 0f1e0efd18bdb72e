"""`zoo completion bash`: bash completes verbs, options, configs and values with the script."""

import subprocess

import pytest

from tests.commands import complaint
from zoo.__main__ import main


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    pytest.importorskip("shtab", reason="shtab, of the extra `completion`, is not installed")
    import shtab

    from zoo.cli.completion import command_parser

    path = tmp_path_factory.mktemp("completion") / "zoo.bash"
    path.write_text(shtab.complete(command_parser(), shell="bash"))
    return path


def test_bash_completes(script):
    lines = [["f"], ["fit", "--model.readout"], ["fit", "--config", "tiny/i"], ["predict", "--overw"],
             ["generate", "--precision", "b"], ["completion", "z"],
             ["push", "--lic"], ["export", "--format", "g"], ["pull", "--rev"], ["list", "--w"],
             ["consolidate", "--output_"]]  # fmt: skip
    code = f". {script}\n" + "".join(
        f"COMP_WORDS=(zoo {' '.join(words)}); COMP_CWORD={len(words)}; COMPREPLY=(); "
        f"_shtab_zoo zoo '{words[-1]}' '{['zoo', *words][-2]}'; echo ${{COMPREPLY[@]}}\n"
        for words in lines
    )
    shown = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown == ["fit", "--model.readout_dim", "tiny/icr tiny/icr_pool", "--overwrite", "bf16", "zsh",
                     "--licence", "gguf", "--revision", "--weights", "--output_dir"]  # fmt: skip


def test_the_name_of_a_shell_is_needed(capsys):
    assert "needs the name of a shell: bash, zsh, tcsh" in complaint(capsys, 1, "completion", "fish")
    assert main(["completion", "--help"]) == 0
