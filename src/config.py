"""What every Hydra entry point shares: where configs are found, what a run is called, and plain values from them."""

import ctypes
import hashlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from src.runs import flat, sentence
from src.terminal import escaped

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
CONF = str(ROOT / "conf")


class ExperimentsSource(FileConfigSource):
    """The repository's root as a place of configs, of which only `experiments/` is seen."""

    @staticmethod
    def scheme() -> str:
        return "experiments"

    def is_group(self, config_path: str) -> bool:
        return config_path.split("/")[0] in ("", "experiments") and super().is_group(config_path)

    def is_config(self, config_path: str) -> bool:
        return config_path.split("/")[0] == "experiments" and super().is_config(config_path)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if not config_path:
            return ["experiments"] if results_filter in (None, ObjectType.GROUP) else []
        return super().list(config_path, results_filter)


class ExperimentsPath(SearchPathPlugin):
    """Makes `experiments/`, beside `conf/`, a config group from any working folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("captionary", f"experiments://{ROOT}")


NOT_IN_NAME = {
    *("name", "run_dir", "ckpt", "overwrite", "experiments", "data", "evaluate_splits"),
    *("callbacks.pictures.count", "callbacks.pictures.tile", "callbacks.last.minutes", "callbacks.last.steps"),
    *("data.workers", "data.cache_workers", "data.cache_dir", "data.shard_cache_gb"),
    *("data.verify", "data.eval_batch_size"),
    *("trainer.accelerator", "trainer.devices", "trainer.fast_dev_run", "trainer.enable_progress_bar"),
    *("trainer.num_nodes", "trainer.strategy.backend", "trainer.strategy.timeout", "compile"),
    *("trainer.log_every_n_steps", "trainer.max_time"),
}
"""Overrides that change where, how fast or how visibly a run learns, not what."""


def run_name() -> str:
    """A run's folder below `runs/`, from its experiment (or data) and its overrides, so that a second call of the same
    command finds it; overrides that do not change what is learned are left out."""
    if not HydraConfig.initialized():
        return "unnamed"
    hydra = HydraConfig.get()
    choices = hydra.runtime.choices
    base = "+".join(recipes()) or str(choices.get("data") or "run")
    parts = []
    for override in sorted(plain(hydra.overrides.task, resolve=False)):  # `run_dir=…/${name}` asks for this very name
        key, _, value = override.lstrip("+~").partition("=")
        if key in NOT_IN_NAME or key.split(".")[0] in ("logger", "hydra"):
            continue
        value = path_name(value)
        parts.append(f"{key}={value}")
    name = ",".join([base, *parts])
    slug = re.sub(r"[^\w=,.+/-]+", "_", name)
    if len(slug) > 160:
        slug = f"{slug[:140]}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
    return slug


def path_name(value: str) -> str:
    """A path in one word, another for each place: its parts but `runs`, `bundle` and `checkpoints`, joined by hyphens;
    what is no path, as it is."""
    parts = [part for part in Path(value).parts if part not in ("/", "..", "runs", "bundle", "checkpoints")]
    return "-".join(parts) if "/" in value else value


def recipes() -> list[str]:
    """The `experiments=` of this call, in order."""
    overrides = plain(HydraConfig.get().overrides.task, resolve=False)
    chosen = [override for override in overrides if re.match(r"\+?experiments=", override)]
    return re.findall(r"[^\s,\[\]'\"]+", chosen[-1].partition("=")[2]) if chosen else []


def given_fields() -> set[str]:
    """What the command line and the recipe set: groups (`encoder`) and dotted fields (`encoder.frozen`)."""
    if not HydraConfig.initialized():
        return set()
    given = set()
    for override in plain(HydraConfig.get().overrides.task, resolve=False):
        key, _, value = override.lstrip("+~").partition("=")
        given |= set(flat({key: yaml.safe_load(value)})) if value.startswith("{") else {key}
    for recipe in recipes():
        path = ROOT / "experiments" / f"{recipe}.yaml"
        if not path.exists():  # from --config-dir
            continue
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        chosen = [name for entry in content.pop("defaults", []) if isinstance(entry, dict) for name in entry]
        given |= {name.removeprefix("override ").strip("/ ") for name in chosen}
        given |= set(flat(content))
    return given


def called() -> dict[str, Any]:
    """What this call chose: its `overrides` of the config, and of each group the choice; nothing without Hydra."""
    if not HydraConfig.initialized():
        return {}
    hydra = HydraConfig.get()
    choices = {k: v for k, v in hydra.runtime.choices.items() if not k.startswith("hydra/") and v is not None}
    overrides = OmegaConf.to_container(hydra.overrides.task, resolve=False)  # as they were written
    return {"overrides": overrides, "choices": choices}


def _no_advertisement(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("💡 Tip")


def setup() -> None:
    """Register what the configs use. Called on import; harmless twice."""
    SourcesRegistry.instance().register(ExperimentsSource)
    Plugins.instance().register(ExperimentsPath)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("either", lambda first, second: second if first is None else first, replace=True)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # what is logged is of all processes already
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # a frozen backbone is
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_no_advertisement)
    warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")


setup()


def plain(config: Any, resolve: bool = True) -> Any:
    """An OmegaConf node as plain dicts and lists, `${…}` resolved."""
    return OmegaConf.to_container(config, resolve=resolve) if OmegaConf.is_config(config) else config


def precision(wanted: str, device: str) -> str:
    """Lightning's precision for `auto`: bf16 where the hardware has it, fp16 on older GPUs, else float32."""
    if wanted != "auto":
        return {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}.get(str(wanted), wanted)
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if device == "cpu":
        flags = Path("/proc/cpuinfo")
        native = flags.exists() and re.search(r"avx512_bf16|amx_bf16|\bbf16\b", flags.read_text())
        return "bf16-mixed" if native else "32-true"
    return "32-true"


def autocast_dtype(name: str) -> torch.dtype | None:
    """The type that Lightning's precision `name` computes in under autocast; None for full precision."""
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(name)


def keep_freed_memory() -> None:
    """Have glibc's malloc, where that is what there is, keep what tensors free for the next ones instead of giving it
    back: else the system clears every page again at every step (docs/performance.md)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim, mmap, most = -1, -3, 2**31 - 1  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        # An older glibc takes 32 MB at most. The other alone would end its own adjustment, and make it slower.
        if mallopt(mmap, most) or mallopt(mmap, 32 << 20):
            mallopt(trim, most)


def forget_rare_shapes() -> None:
    """Have oneDNN, PyTorch's library on CPUs, hold the kernels of 256 shapes instead of 1,024; before its first one.
    Captions' lengths make new shapes at every step, and kernels kept for them take gigabytes in hours of training."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")


def give_back_memory() -> None:
    """Give the system what was freed so far, in spite of `keep_freed_memory`: what large tables were read with."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@contextmanager
def quiet() -> Iterator[None]:
    """Let nothing within a `with` block warn: of what only looks at a configuration, or says how it works."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def device() -> str:
    """The fastest kind of device here: cuda, mps or cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def one_sentence(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Turn what a user can mend (a ValueError, a missing file, a full disk) into one sentence, not a traceback."""

    def wrapped(config: DictConfig) -> Any:
        from pytorch_lightning.utilities.exceptions import MisconfigurationException  # seconds, for those who train

        try:
            return main(config)
        except (ValueError, OSError, ImportError, MisconfigurationException) as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN or os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            log.debug("", exc_info=True)
            sys.exit(f"error: {escaped(sentence(error))}")

    wrapped.__name__, wrapped.__doc__, wrapped.__module__ = main.__name__, main.__doc__, main.__module__
    return wrapped
