"""A file like CenterFace's, of the same operations in the same order, with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class DrawnNetwork:
    """A graph, added to node by node; `write` makes CenterFace's of it."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes, self.arrays = [], []

    def add(self, operation: str, inputs: list[str], *arrays: np.ndarray, **attributes) -> str:
        names = [f"w{len(self.arrays) + place}" for place in range(len(arrays))]
        self.arrays += [
            numpy_helper.from_array(array.astype(np.float32), name)
            for name, array in zip(names, arrays, strict=True)
        ]
        output = f"x{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, [*inputs, *names], [output], **attributes))
        return output

    def convolve(self, x, shape, stride=1, groups=1, relu=True) -> str:
        # What is added up without being cut off begins small, so that nothing overflows.
        gain = 2.0 if relu else 0.1
        kernel = self.random.normal(0, np.sqrt(gain / np.prod(shape[1:])), shape)
        bias = self.random.normal(0, 0.1, shape[0])
        pads = [shape[2] // 2] * 4
        x = self.add("Conv", [x], kernel, bias, strides=[stride] * 2, pads=pads, group=groups)
        return self.add("Relu", [x]) if relu else x

    def raise_resolution(self, x) -> str:
        kernel = self.random.normal(0, 0.2, (24, 24, 2, 2))
        norm = [self.random.uniform(0.5, 1.5, 24) for _ in range(4)]
        x = self.add("ConvTranspose", [x], kernel, strides=[2, 2])
        return self.add("Relu", [self.add("BatchNormalization", [x], *norm, epsilon=1e-3)])

    def block(self, x, expansion, before, channels, stride) -> str:
        inside, width = x, expansion * before
        if expansion > 1:
            inside = self.convolve(x, (width, before, 1, 1))
        inside = self.convolve(inside, (width, 1, 3, 3), stride, groups=width)
        inside = self.convolve(inside, (channels, width, 1, 1), relu=False)
        return self.add("Add", [x, inside]) if stride == 1 and before == channels else inside

    def write(self, path: Path) -> Path:
        """Write the file; beside its own four outputs it gives MobileNetV2's."""
        x, before, features = self.convolve("photo", (32, 3, 3, 3), 2), 32, {}
        self.arrays[0] = numpy_helper.from_array(
            numpy_helper.to_array(self.arrays[0]) / np.float32(255), self.arrays[0].name
        )
        stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
        for expansion, channels, blocks, stride in [*stages, (6, 160, 3, 2), (6, 320, 1, 1)]:
            for block in range(blocks):
                x = self.block(x, expansion, before, channels, 1 if block else stride)
                before = channels
            features[channels] = x
        x = self.convolve(x, (24, 320, 1, 1))
        for channels in (96, 32, 24):
            x = self.raise_resolution(x)
            x = self.add("Add", [x, self.convolve(features[channels], (24, channels, 1, 1))])
        x = self.convolve(x, (24, 24, 3, 3))
        score = self.add("Sigmoid", [self.convolve(x, (1, 24, 1, 1), relu=False)])
        size, offset, landmarks = (
            self.convolve(x, (number, 24, 1, 1), relu=False) for number in (2, 2, 10)
        )
        maps = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in (score, size, offset, landmarks, features[320])
        ]
        photo = helper.make_tensor_value_info("photo", TensorProto.FLOAT, ["n", 3, "h", "w"])
        graph = helper.make_graph(self.nodes, "drawn", [photo], maps, self.arrays)
        opset = [helper.make_opsetid("", 13)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
        return path
