"""The optional base class of adapters: what it hands to transformers, and that nobody needs it."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mm_cca import load_adapter
from mm_cca.adapters import common
from mm_cca.adapters.base import UnifiedModel
from mm_cca.adapters.common import StandardDecoder, last_hidden
from mm_cca.config.shipped import ADAPTERS
from mm_cca.testing import contract
from tests.example_adapter import AppendedCodes
from tests.support.checkpoints import weights_of
from tests.support.third_party import THIRD_PARTY, checkpoint_paths


def _without_base() -> type:
    """The example's class with the base's methods as its own: all of the protocol, no parent."""

    def load(path: str, dtype: torch.dtype, image_tokenizer: str | None) -> object:
        model = WithoutBase()
        vars(model).update(vars(AppendedCodes.load(path, dtype, image_tokenizer)))
        return model

    inherited = vars(StandardDecoder) | vars(AppendedCodes)
    methods = {name: part for name, part in inherited.items() if not name.startswith("__")}
    return type("WithoutBase", (), methods | {"load": staticmethod(load)})


WithoutBase = _without_base()


def test_an_adapter_without_the_base_keeps_the_contract(folders: Path):
    assert WithoutBase.__mro__ == (WithoutBase, object)
    where = checkpoint_paths(folders, THIRD_PARTY)
    name = "tests.adapters.test_standard_decoder:WithoutBase"
    measured = contract.check_adapter(name, image_size=[64, 64], **where)
    assert max(measured.values()) < 1e-4, measured


def _load(folders: Path, name: str) -> UnifiedModel:
    model = load_adapter(name, **checkpoint_paths(folders, name))
    model.module.eval()
    return model


@pytest.mark.parametrize("name", [*ADAPTERS, THIRD_PARTY])
def test_transformers_is_called_by_no_deprecated_name(name: str, folders: Path):
    model = _load(folders, name)
    mask, places = torch.ones(2, 5, dtype=torch.bool), torch.arange(5).expand(2, -1)
    embeds = model.embed_text(torch.arange(10).view(2, 5))
    cache = model.new_cache(8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            model.hidden_states(embeds, mask, places, cache)
        model.enable_gradient_checkpointing()
        model.module.train()
        model.hidden_states(embeds, mask, places).sum().backward()
    assert int(cache.get_seq_length()) == 5, "the cache was not filled"


class _Decoder(nn.Module):
    """Takes the cache under one name only."""

    def forward(self, *, past_key_values: object, use_cache: bool, **others: object) -> object:
        assert use_cache is (past_key_values is not None)
        return SimpleNamespace(last_hidden_state=past_key_values)


def test_an_older_transformers_gets_the_cache_by_its_older_name(monkeypatch: pytest.MonkeyPatch):
    ours, nothing = object(), torch.zeros(1)
    monkeypatch.setattr(common, "CACHE_ARGUMENT", "cache")
    with pytest.raises(TypeError, match="past_key_values"):
        last_hidden(_Decoder(), nothing, nothing, nothing, ours)
    monkeypatch.setattr(common, "CACHE_ARGUMENT", "past_key_values")
    assert last_hidden(_Decoder(), nothing, nothing, nothing, ours) is ours
    assert last_hidden(_Decoder(), nothing, nothing, nothing, None) is None


@pytest.mark.parametrize("name", ["emu3", THIRD_PARTY])
def test_gathered_weights_are_saved_in_place_of_the_modules_own(
    name: str, folders: Path, tmp_path: Path
):
    """They are named as in ``module``, which holds the transformers model under a name or is it."""
    model = _load(folders, name)
    gathered = {n: torch.full_like(x, 0.5) for n, x in model.module.state_dict().items()}
    model.save(tmp_path, gathered)
    written = load_file(tmp_path / "model.safetensors")
    before = weights_of(Path(str(checkpoint_paths(folders, name)["path"])))
    assert written.keys() == before.keys()
    assert all(torch.equal(x, torch.full_like(x, 0.5)) for x in written.values())
