"""The surface of ``onnxruntime-gpu`` that the engine uses, in front of sessions on the
processors.
"""

from __future__ import annotations

import types
from typing import Any

import onnxruntime

ALL = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


class FakeBinding:
    """A binding that says what was bound; on this machine the device's memory is the
    processors'.
    """

    def __init__(self, binding: Any, calls: list[Any]) -> None:
        self.binding, self.calls = binding, calls

    def bind_cpu_input(self, name, values):
        self.calls.append(("input", name, values.shape))
        self.binding.bind_cpu_input(name, values)

    def bind_output(self, name, device_type):
        self.calls.append(("output", name, device_type))
        self.binding.bind_output(name, device_type)

    def bind_ortvalue_input(self, name, value):
        self.calls.append(("fixed input", name, value.data_ptr()))
        self.binding.bind_ortvalue_input(name, value)

    def bind_ortvalue_output(self, name, value):
        self.calls.append(("fixed output", name, value.data_ptr()))
        self.binding.bind_ortvalue_output(name, value)

    def copy_outputs_to_cpu(self):
        return self.binding.copy_outputs_to_cpu()


class FakeOnnxRuntime:
    """What sessions were asked for and did.

    Attributes:
        lost: operators that end up on the processors.
        used: providers that load; the others are left out without an error, as the library does.
        options: of the last session's providers, by name.
        graphs: ``gpu_graph_id`` of every run.
        calls: of bindings.
        devices: where memory was asked for.
    """

    def __init__(self, monkeypatch: Any, used: list[str] = ALL, lost: tuple[str, ...] = ()) -> None:
        self.used, self.lost = used, lost
        self.options: dict[str, dict[str, str]] = {}
        self.graphs: list[str | None] = []
        self.calls: list[Any] = []
        self.devices: list[str] = []
        self.preloads = 0
        original = onnxruntime.InferenceSession
        run_options = onnxruntime.RunOptions
        value = onnxruntime.OrtValue
        from_numpy, from_shape = value.ortvalue_from_numpy, value.ortvalue_from_shape_and_type

        def session(path, options, providers, enable_fallback):
            assert enable_fallback == 0
            real = original(path, options, providers=["CPUExecutionProvider"])
            if providers == ["CPUExecutionProvider"]:
                return real
            self.options = dict(providers)
            assert (
                options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
            )
            return Session(self, real, [name for name, _ in providers if name in self.used])

        class RunOptions(run_options):
            def add_run_config_entry(self, key, number):
                assert key == "gpu_graph_id"
                self.number = number

        def numpy_value(values, device, number):
            self.devices.append(f"{device}:{number}")
            return from_numpy(values.copy())

        def shape_value(shape, dtype, device, number):
            self.devices.append(f"{device}:{number}")
            return from_shape(shape, dtype)

        def preload():
            self.preloads += 1

        monkeypatch.setattr(onnxruntime, "InferenceSession", session)
        monkeypatch.setattr(onnxruntime, "RunOptions", RunOptions)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
        monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
        monkeypatch.setattr(value, "ortvalue_from_numpy", staticmethod(numpy_value))
        monkeypatch.setattr(value, "ortvalue_from_shape_and_type", staticmethod(shape_value))


class Session:
    def __init__(self, fake: FakeOnnxRuntime, real: Any, providers: list[str]) -> None:
        self.fake, self.real, self.providers = fake, real, providers

    def __getattr__(self, name):
        return getattr(self.real, name)

    def get_providers(self):
        return [*self.providers, "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self):
        (all_on_cpu,) = {part.ep_name for part in self.real.get_provider_graph_assignment_info()}
        assert all_on_cpu == "CPUExecutionProvider"
        kept = [
            node
            for part in self.real.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]
        placed = {"CPUExecutionProvider": ["Shape", "Gather", *self.lost]}
        if self.providers:
            placed[self.providers[0]] = [node.op_type for node in kept]
        return [
            types.SimpleNamespace(
                ep_name=name,
                get_nodes=lambda kinds=kinds: [
                    types.SimpleNamespace(op_type=kind) for kind in kinds
                ],
            )
            for name, kinds in placed.items()
        ]

    @property
    def lost(self):
        return self.fake.lost

    def io_binding(self):
        return FakeBinding(self.real.io_binding(), self.fake.calls)

    def run_with_iobinding(self, binding, options):
        self.fake.graphs.append(getattr(options, "number", None))
        self.real.run_with_iobinding(binding.binding, options)
