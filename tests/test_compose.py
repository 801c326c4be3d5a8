"""Composed configs: a copy equals what Hydra composes."""


def test_composing_a_copy_equals_composing_anew() -> None:
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from distill.compose import Composer
    from distill.naming import CONF

    loader = Hydra.create_main_hydra2("distill", create_config_search_path(str(CONF))).config_loader
    master = loader.load_configuration("config", ["seed=1,2"], run_mode=RunMode.MULTIRUN)
    composer = Composer(loader)
    jobs = [
        ["seed=1", "loss=kd", "loss.temperature=2"],
        ["seed=2", "loss=kd", "loss.temperature=0.5"],
        ["seed=2", "loss=logits", "+loss.extra=5"],
        ["seed=3", "loss=logits", "+loss.extra=6"],
        ["seed=4", "data.root='a b'", "transfer=omit", "transfer.classes=[1,2]"],
        ["seed=5", "data.root=null", "transfer=omit", "transfer.classes=[3]"],
        ["seed=6", "~loss.alpha", "hydra.verbose=true"],
        ["seed=7", "~loss.alpha", "hydra.verbose=true"],
    ]
    for overrides in jobs:
        theirs = loader.load_sweep_config(master, overrides)
        assert theirs.seed == int(overrides[0][-1])
        expected = OmegaConf.to_container(theirs)
        assert OmegaConf.to_container(composer.load_sweep_config(master, overrides)) == expected
        whole, task = map(OmegaConf.to_container, composer.compose(master, overrides))
        assert whole == expected
        assert isinstance(expected, dict) and expected.pop("hydra")
        assert task == expected
