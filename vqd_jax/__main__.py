"""The command line: `vqd COMMAND --flag=value ...`, the same as `python -m vqd_jax COMMAND`.

`vqd --help` lists the commands.
"""

import difflib
import sys

COMMANDS = {
    "train": "train the codec and the denoiser of a config",
    "prepare": "pack a data set for fast training and list broken images",
    "sample": "generate images from prompts; inpaint, vary or extend an image",
    "demo": "open a page in the browser to generate images",
    "explain": "show in one figure how an image was generated, step by step",
    "evaluate": "measure a model or a folder of images by a named protocol",
    "plan": "measure how many tokens to sample in each network call",
    "plan_memory": "plan memory and speed on chips you don't have",
    "report": "write one HTML page about a run",
    "export": "write a trained model as one file, for diffusers, or small",
    "convert": "make a workdir of released PyTorch weights or an exported file",
}


# A script for bash: the commands, the flags that the help of a command lists, and files.
COMPLETION = r"""_vqd() {
  local current=${COMP_WORDS[COMP_CWORD]} words
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    words="%s"
  elif [[ $current == -* ]]; then
    words=$(vqd "${COMP_WORDS[1]}" --help 2>/dev/null | sed -nE \
      -e "s/^  --\[no\]([a-z_]+).*/--\1 --no\1/p" -e "s/^  (--[a-z_]+=).*/\1/p")
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -o nospace -F _vqd vqd"""


def usage() -> str:
    """The help text, with one line for each command."""
    rows = "\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items())
    return (
        f"usage: vqd COMMAND [--flag=value ...]\n\n{rows}\n\n"
        "`vqd COMMAND --help` lists the flags of a command. For completion by the Tab key add this "
        'line\nto ~/.bashrc (in zsh, after `autoload bashcompinit && bashcompinit`): eval "$(vqd '
        '--completion)"'
    )


def main() -> None:
    """Runs the command that the arguments name."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
    elif name == "--completion":
        print(COMPLETION % " ".join(COMMANDS))
    elif name == "--version":
        from vqd_jax import __version__

        print(__version__)
    elif name in COMMANDS:
        from vqd_jax.cli import runner

        sys.argv = [f"vqd {name}", *rest]  # ml_collections reads --config.KEY=VALUE from there
        runner.start(name, rest)
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.7)
        hint = f"did you mean {near[0]}?" if near else "`vqd --help` lists them"
        print(f"error: there is no command {name!r}; {hint}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
