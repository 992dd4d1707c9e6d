"""Every head and every backbone is written to the one signature."""

import inspect
from typing import get_args

import pytest
import torch
from ase.build import bulk

from phicalc import fields
from phicalc.data.graph import collate, graph_dict, to_graph
from phicalc.electrostatics.heads.head import Head
from phicalc.model.build import build_backbone, build_head
from phicalc.model.config import BackboneConfig, HeadConfig
from phicalc.nn.backbone import Backbone
from tests.heads import KINDS

HEADS = get_args(get_args(HeadConfig)[0])
BACKBONES = get_args(get_args(BackboneConfig)[0])
ELEMENTS = [11, 17]


def arguments(function) -> list[tuple[str, object]]:
    return [(p.name, p.annotation) for p in inspect.signature(function).parameters.values()]


def test_the_table_of_the_tests_has_every_kind_of_head():
    assert set(KINDS) == {config().kind for config in HEADS}


@pytest.mark.parametrize("config", HEADS)
def test_heads(config):
    head = build_head(config(), 8, 2, ELEMENTS, 5.0).eval()
    assert isinstance(head, Head)
    assert arguments(type(head).forward) == arguments(Head.forward)
    assert set(head.physical) <= set(dict(head.named_parameters()))
    graph = graph_dict(collate([to_graph(bulk("NaCl", "rocksalt", a=5.64, cubic=True), 5.0)]))
    features = [torch.randn(8, 8) for _ in range(2)]
    output = head(features, (graph[fields.SPECIES] == 17).long(), graph)
    for name in (fields.ENERGIES, fields.CHARGES):
        if name in output or name == fields.ENERGIES:
            assert output[name].shape == (8,) and output[name].dtype == torch.float64
    assert (fields.CHARGES in output) == config().capabilities.charges


@pytest.mark.parametrize("config", BACKBONES)
def test_backbones(config):
    backbone = build_backbone(config(features=16, layers=2), 5.0, 2, 20.0)
    assert isinstance(backbone, Backbone)
    assert arguments(type(backbone).forward) == arguments(Backbone.forward)
    graph = graph_dict(collate([to_graph(bulk("NaCl", "rocksalt", a=5.64, cubic=True), 5.0)]))
    vectors = graph[fields.EDGE_VECTORS].float()
    index, gates = (graph[fields.SPECIES] == 17).long(), torch.ones(len(vectors))
    features = backbone(index, torch.zeros(8, 16), graph[fields.EDGE_INDEX], vectors, gates)
    assert [tuple(step.shape) for step in features] == [(8, 16), (8, 16)]
