"""The lists of what runs without approval are complete for rendered bundles, and have no gadget."""

import ast
import inspect
import json
import pydoc
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from monai.bundle import ComponentLocator
from monai.inferers import PatchInferer
from monai.transforms import LoadImage, SaveImage

from medunet.bundle import render, shipped_bundles
from medunet.bundle.check import accepted_arguments
from medunet.trust.known import KNOWN_EXPRESSIONS, KNOWN_TARGETS, is_known_expression, missing_from_known

GADGETS = {"eval", "exec", "compile", "__import__", "locate", "import_module", "run_cmd", "system", "Popen"}
"""Calls that turn a string into something that runs; `optional_import` does so where its name is no constant."""
LOADERS = {"load", "loads", "hf_hub_download", "load_url", "load_state_dict_from_url", "urlopen", "urlretrieve"}
PICKLES = {"torch", "pickle", "np", "numpy", "joblib"}
JUDGED_BY_ARGUMENT = {"LoadImaged": {"locate", "optional_import"}}
"""Gadgets of a target whose argument is inspected separately, see GADGET_ARGUMENTS."""


def find(target: str) -> Any:
    module = ComponentLocator().get_component_module_name(target)
    module = module[0] if isinstance(module, list) else module
    component = pydoc.locate(target if module is None else f"{module}.{target}")
    assert component is not None, target
    return component


def sources(component: Any) -> Iterator[str]:
    """Yield the sources of a target and the classes that it is made of."""
    classes = [c for c in component.__mro__ if c is not object] if inspect.isclass(component) else [component]
    for one in classes:
        if one.__module__.split(".")[0] in ("monai", "medunet"):
            yield textwrap.dedent(inspect.getsource(one))


def gadgets(source: str) -> set[str]:
    """Return the calls in a source that turn a string into something that runs."""
    names = set()
    for node in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = getattr(getattr(node.func, "value", None), "id", None)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        is_method = name == "eval" and isinstance(node.func, ast.Attribute)  # network.eval()
        if name in GADGETS and not is_method and not (name == "compile" and owner in ("torch", "re")):
            names.add(name)
        texts = [*node.args[:1], *[keywords[key] for key in keywords if key == "name"]]
        if name == "optional_import" and not all(isinstance(text, ast.Constant) for text in texts):
            names.add(name)
        if name in LOADERS and (owner in PICKLES or name not in ("load", "loads")):
            is_safe = getattr(keywords.get("weights_only"), "value", None) is True
            names |= set() if is_safe else {f"{owner}.{name}"}
    return names


@pytest.mark.parametrize("target", sorted(KNOWN_TARGETS))
def test_no_target_turns_a_string_into_code(target: str) -> None:
    component = find(target)
    assert component.__module__.startswith(("medunet.", "monai.", "torch.nn.", "torch.optim."))
    bad = set().union(*map(gadgets, sources(component)))
    if component.__name__.endswith("d"):  # the array transform that a dictionary transform wraps
        inner = f"{component.__module__.replace('dictionary', 'array')}.{component.__name__.removesuffix('d')}"
        bad |= set().union(*map(gadgets, sources(wrapped))) if (wrapped := pydoc.locate(inner)) is not None else set()
    assert bad <= JUDGED_BY_ARGUMENT.get(target, set())
    accepted_arguments(target)


def test_gadgets_are_detected_in_sources() -> None:
    for one in (LoadImage, SaveImage, PatchInferer):
        assert "locate" in set().union(*map(gadgets, sources(one)))
    assert gadgets("torch.load(p)") == {"torch.load"}
    assert gadgets("torch.load(p, weights_only=True)") == set()


def test_components_that_run_or_load_something_are_not_on_the_list() -> None:
    gadgets = {"Lambdad", "SaveImaged", "PatchInferer", "NumpyReader", "PersistentDataset", "CheckpointLoader"}
    assert KNOWN_TARGETS.isdisjoint({*gadgets, "FlexibleUNet", "TorchVisiond", "MLFlowHandler"})


@pytest.mark.parametrize("name", shipped_bundles())
def test_rendered_bundles_contain_only_known_values(name: str) -> None:
    configs = [json.loads(text) for file, text in render(name).items() if file.endswith(".json")]
    assert missing_from_known(configs) == (set(), set())


def test_known_expressions_call_only_reviewed_functions() -> None:
    """A reviewer of a new expression checks that its calls are harmless with any plain values and reviewed targets."""
    called, imported = set(), set()
    for text in KNOWN_EXPRESSIONS:
        python = text[1:].replace("@", "ref_").replace("#", "_")
        for node in ast.walk(ast.parse(python)):
            called |= {ast.unparse(node.func)} if isinstance(node, ast.Call) else set()
            imported |= {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()
    assert imported == {"os", "torch", "monai", "medunet"}
    plain = {name for name in called if "ref_" not in name}
    assert plain == {
        *("dict", "zip", "len", "int", "max", "str", "list", "range"),
        "os.environ.get",
        *("medunet.datasets.datalist", "medunet.datasets.list_inputs", "medunet.runtime.resolve_device"),
        *("monai.handlers.from_engine", "monai.utils.path_to_sqlite_uri"),
        *("torch.manual_seed", "torch.device", "torch.cuda.is_available", "medunet.networks.synchronize_norms"),
        *("medunet.training.join_processes", "medunet.training.leave_processes", "medunet.training.was_restarted"),
        "medunet.training.loader_workers",
    }
    methods = {name.rpartition(".")[2] for name in called - plain}
    assert methods == {"run", "to", "parameters", "output_size", "index"}


@pytest.mark.parametrize(
    "text", ["$1 + 1", " $@evaluator.run()", "$@evaluator.run() ", "$@ckpt_dir + '/fold_1.pt' or 1"]
)
def test_an_expression_is_compared_as_a_whole(text: str) -> None:
    assert not is_known_expression(text)
