"""The version of MINT, as it stands in every analysis, plan and manifest, and the command that installs more of it."""

__version__ = "0.1.0"

# an editable installation that a folder called `mint` in the current one does not hide
_COMPAT = ("--config-settings", "editable_mode=compat")


def install_command(extra: str) -> str:
    """The pip command that adds an extra to this installation: from the folder or file that it came from, if any."""
    import json
    import shlex
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        record = json.loads(distribution("mint-mlx").read_text("direct_url.json") or "{}")  # PEP 610
    except PackageNotFoundError:
        record = {}
    url = urlsplit(record.get("url", ""))
    origin = url2pathname(url.path) if url.scheme == "file" else "mint-mlx"
    wanted = f"{origin}[{extra}]"
    editable = record.get("dir_info", {}).get("editable")
    return shlex.join(["pip", "install", *(["-e", wanted, *_COMPAT] if editable else [wanted])])
