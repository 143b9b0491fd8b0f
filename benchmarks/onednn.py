#!/usr/bin/env python3
"""Compares Kiln's convolutions with oneDNN's, layer by layer, on the layers of a network.

    benchmarks/onednn.py examples/resnet34.json --kiln build/kiln --threads 1

Every distinct convolution of Kiln's own imported graph is taken alone, with a bias and a relu behind it, as networks
have it once batch norms are folded; residual sums and pools, which both can compute in the same pass, are left out.
Both sides get the same weights and input, and must agree to a relative L2 of 1e-4 before anything is timed.

What counts is the convolution. Each side reads its source and leaves its result in the layout that it likes best, with
padding if it wants that: conversions from NCHW and back stand around every run of both, outside of its time, and
filters are prepared before. Two things count in addition: steps of Kiln's that serve its algorithm alone (cutting the
source into phases or tiles), and, where the layer reads an input of the network, bringing that from NCHW into another
layout. A layer alone may be computed by another algorithm than in the network, where its neighbours have a say.

oneDNN is asked for the layouts of its choice (format_tag::any), and tried with "auto" and with Winograd's algorithm,
which "auto" passes over; the faster takes part (--algorithm chooses). Rounds take turns, because machines change their
speed: in each, one process of either side for every layer, whose median of 21 runs counts. Milliseconds are medians
over the rounds, a ratio is the median of the rounds' ratios, oneDNN's time by Kiln's. The sum counts every layer as
often as the network has it.

--cpu x86-64-v3 compiles for AVX2 and limits oneDNN to it too; x86-64-v2 likewise, SSE4.2 and SSE4.1.

Needs Python with numpy, a C compiler ($CC, default cc) and oneDNN 2 or 3 with its headers: on Debian, libdnnl-dev. Where
that is missing, the exit code is 3; elsewhere than in the system's folders the compiler finds it by CPATH and
LIBRARY_PATH, and the loader by LD_LIBRARY_PATH. Where others use the machine, begin with `chrt -f 50`.
"""

import argparse
import csv
import io
import json
import math
import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile

from graph_text import NODE, PORT, VALUE, name_of, operands_of, parse_attributes, parse_dims, run_kiln

try:
    import numpy as np
except ImportError as error:
    sys.exit(f"{error}\nThis script needs: pip install numpy")

RELATIVE_ERROR = 1e-4
RUNS = 21  # as many as `kiln bench --kernels` takes
EXIT_NO_ONEDNN, EXIT_LACKING = 3, 2
MAX_CPU_ISA = {"x86-64-v2": "SSE41", "x86-64-v3": "AVX2"}
OF_AN_ALGORITHM = re.compile(r"(phases|tiles)\w+")  # layouts, see ir/IR.md
PLACED = re.compile(rf"^\s*(?:input |parameter )?{VALUE}(?:@\d+)? (?:= (\w+) (.*?) ?)?: \w+\[[^\]]*\] (\w* ?)@(\w+)")
PROBE = "#include <dnnl.h>\nint main(void) { return dnnl_version() == NULL; }\n"
HERE = os.path.dirname(os.path.abspath(__file__))


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a description, e.g. examples/resnet34.json")
    parser.add_argument("--kiln", default="kiln", help="the kiln program (default: from PATH)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="default", choices=["default", "strict", "fast"], help="kiln's --precision")
    parser.add_argument("--cpu", default="native", help="kiln's --cpu; oneDNN is limited to x86-64-v3 or v2 too")
    parser.add_argument("--algorithm", default="fastest", choices=["fastest", "auto", "direct", "winograd"],
                        help="oneDNN's; fastest (default): auto or winograd")
    parser.add_argument("--shape", action="append", default=[], help="kiln's --shape, e.g. image=Nx3x352x352")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if min(options.batch, options.threads, options.rounds) < 1:
        parser.error("--batch, --threads and --rounds must be positive")
    return options


def run_compiler(arguments, text=None):
    compiler = os.environ.get("CC", "cc").split()
    try:
        return subprocess.run([*compiler, *arguments, "-ldnnl"], input=text, capture_output=True, text=True)
    except OSError as error:
        sys.exit(f"the C compiler cannot be run: {error}")


def build_peer(program):
    if run_compiler(["-x", "c", "-", "-o", program], PROBE).returncode != 0:
        print("oneDNN is not installed: its header dnnl.h and library libdnnl are needed; on Debian: apt-get install "
              "libdnnl-dev", file=sys.stderr)
        sys.exit(EXIT_NO_ONEDNN)
    built = run_compiler(["-O2", "-o", program, os.path.join(HERE, "onednn_conv.c")])
    if built.returncode != 0:
        sys.exit(f"onednn_conv.c cannot be compiled:\n{built.stderr.strip()}")


def write_safetensors(path, tensors):
    head, offset = {}, 0
    for name, tensor in tensors.items():
        head[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(t.tobytes() for t in tensors.values()))


class Layer:
    """A convolution that the network has `count` times, the first of them called `name`."""

    def __init__(self, name, source, weights, result, attributes, of_input):
        self.name, self.count, self.of_input = name, 1, of_input
        self.source, self.weights, self.result = source, weights, result
        self.stride = attributes.get("stride", [1, 1])
        self.padding = attributes.get("padding", [0] * 4)
        self.dilation = attributes.get("dilation", [1, 1])
        self.groups = attributes.get("groups", 1)
        self.times = {"onednn": [], "kiln": []}

    def key(self):
        return str((self.source, self.weights, self.result, self.stride, self.padding, self.dilation, self.groups, self.of_input))

    def gflop(self):
        return 2e-9 * math.prod(self.result) * math.prod(self.weights[1:])

    def __str__(self):
        def short(letter, values, usual):
            values = [*dict.fromkeys(values)]
            return "" if values == [usual] else letter + "x".join(map(str, values))

        return (f"{'x'.join(map(str, self.source[1:]))} -> {'x'.join(map(str, self.result[1:]))}, "
                f"{'x'.join(map(str, self.weights[2:]))}{short('/', self.stride, 1)}{short(' dilation ', self.dilation, 1)}"
                f"{short(' groups ', [self.groups], 1)}")

    def description(self):
        convolution = {"op": "conv2d", "name": "conv", "out_channels": self.weights[0], "kernel": self.weights[2:],
                       "stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return {"kiln": 1, "name": "layer", "inputs": {"x": {"shape": ["N", *self.source[1:]]}},
                "layers": [convolution, {"op": "relu", "name": "relu"}]}

    def numbers(self):
        """In the order of onednn_conv.c."""
        return [self.source[0], self.groups, *self.source[1:], *self.result[1:], *self.weights[2:], *self.stride,
                *self.padding, *self.dilation, int(self.of_input), RUNS]

    def prepare(self, folder):
        """Files of the layer alone, values of order one in and out."""
        random = np.random.default_rng(1)
        self.file = lambda name: os.path.join(folder, name)
        scale = np.float32(math.prod(self.weights[1:]) ** -0.5)
        tensors = {"x": random.standard_normal(self.source, dtype=np.float32),
                   "conv.weight": scale * random.standard_normal(self.weights, dtype=np.float32),
                   "conv.bias": random.standard_normal(self.weights[:1], dtype=np.float32)}
        for name, tensor in tensors.items():
            tensor.tofile(self.file(name))
        write_safetensors(self.file("inputs.safetensors"), {"x": tensors.pop("x")})
        write_safetensors(self.file("weights.safetensors"), tensors)
        with open(self.file("layer.json"), "w", encoding="utf-8") as file:
            json.dump(self.description(), file)


def find_layers(text, batch):
    """Distinct convolutions in the network's order, and why others are left out."""
    layers, shapes, inputs, left_out = {}, {}, set(), []
    for line in text.splitlines():
        if match := PORT.match(line):
            kind, name, _, dims = match.groups()
            shapes[name_of(name)] = parse_dims(dims, batch)
            if kind == "input":
                inputs.add(name_of(name))
        elif match := NODE.match(line):
            name, op, operands = name_of(match.group(1)), match.group(2), operands_of(match.group(3))
            shapes[name] = parse_dims(match.group(7), batch)
            attributes = parse_attributes(match.group(5))
            if op == "conv_transpose2d":
                left_out.append(f"'{name}': a transposed convolution")
            elif op == "conv2d" and attributes.get("padding_mode", "zeros") != "zeros":
                left_out.append(f"'{name}': padding_mode {attributes['padding_mode']}")
            elif op == "conv2d":
                layer = Layer(name, shapes[operands[0]], shapes[operands[1]], shapes[name], attributes, operands[0] in inputs)
                if layer.key() in layers:
                    layers[layer.key()].count += 1
                else:
                    layers[layer.key()] = layer
    return [*layers.values()], left_out


class Peer:
    """oneDNN's side."""

    def __init__(self, program, options):
        self.program, self.version = program, None
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
        if options.cpu in MAX_CPU_ISA:
            self.environment["ONEDNN_MAX_CPU_ISA"] = MAX_CPU_ISA[options.cpu]

    def run(self, layer, algorithm):
        """Implementation and milliseconds, or None where oneDNN lacks the algorithm."""
        files = [layer.file(name) for name in ("x", "conv.weight", "conv.bias", "onednn")]
        result = subprocess.run([self.program, algorithm, *files, *map(str, layer.numbers())], env=self.environment,
                                capture_output=True, text=True)
        if result.returncode == EXIT_LACKING:
            return None
        if result.returncode != 0:
            sys.exit(f"{layer.name} ({layer}): oneDNN's program failed with {result.returncode}:\n{result.stderr.strip()}")
        self.version, implementation, time = result.stdout.split()
        return implementation, float(time)

    def choose(self, layer, algorithm, expected):
        """The algorithm to time, after a look at its results."""
        found = {}
        layer.error = 0.0
        for name in ["auto", "winograd"] if algorithm == "fastest" else [algorithm]:
            answer = self.run(layer, name)
            if answer is None:
                continue
            result = np.fromfile(layer.file("onednn"), np.float32).reshape(layer.result)
            error = float(np.linalg.norm(expected - result) / max(np.linalg.norm(result), 1e-30))
            if not error <= RELATIVE_ERROR:
                sys.exit(f"{layer.name} ({layer}): the results differ, oneDNN by {answer[0]}: relative L2 {error:.3g}, "
                         f"expected at most {RELATIVE_ERROR:g}")
            layer.error = max(layer.error, error)
            found[name] = answer
        if not found:
            sys.exit(f"{layer.name} ({layer}): oneDNN {self.version or ''} has no such convolution by algorithm '{algorithm}'")
        layer.algorithm = min(found, key=lambda name: found[name][1])
        layer.implementation = found[layer.algorithm][0]


class Kiln:
    def __init__(self, options):
        self.program = options.kiln
        self.common = ["--batch", str(options.batch), "--threads", str(options.threads), "--precision", options.precision,
                       "--cpu", options.cpu]

    def call(self, verb, layer, *arguments):
        weights = layer.file("weights.safetensors")
        return run_kiln([self.program, verb, layer.file("layer.json"), "--weights", weights, *self.common, *arguments])

    def result(self, layer):
        output = layer.file("kiln.npy")
        self.call("run", layer, "--inputs", layer.file("inputs.safetensors"), "--output", f"relu={output}", "--top", "0")
        return np.load(output)

    def find_uncounted(self, layer):
        """Names of the conversions that do not count: see above."""
        layer.uncounted, serving = set(), set()
        for line in self.call("compile", layer, "--emit", "ir").splitlines():
            if not (match := PLACED.match(line)):
                continue
            name, op, operands, layout, memory = match.groups()
            if OF_AN_ALGORITHM.fullmatch(layout.strip()):
                serving.add(name)
            elif op == "convert" and operands[1:] not in serving and (memory == "output" or not layer.of_input):
                layer.uncounted.add(name_of(name))

    def run(self, layer):
        """The kernels that count and their milliseconds."""
        text = self.call("bench", layer, "--seconds", "0.2", "--kernels", "--csv")
        # nameless values have their % there
        rows = [row for row in csv.DictReader(io.StringIO(text)) if row["value"].removeprefix("%") not in layer.uncounted]
        return " + ".join(row["kernel"].removeprefix("conv2d/") for row in rows), 1e-3 * sum(float(row["us"]) for row in rows)


def summary(ours, theirs):
    ratios = [a / b for a, b in zip(theirs, ours)]
    return {"onednn_ms": statistics.median(theirs), "kiln_ms": statistics.median(ours), "ratio": statistics.median(ratios),
            "ratio_min": min(ratios), "ratio_max": max(ratios)}


def compare(options, layers, peer, kiln):
    for layer in layers:
        peer.choose(layer, options.algorithm, kiln.result(layer))
        kiln.find_uncounted(layer)
    for _ in range(options.rounds):
        for layer in layers:
            layer.times["onednn"].append(peer.run(layer, layer.algorithm)[1])
            layer.kernels, time = kiln.run(layer)
            layer.times["kiln"].append(time)
    rows = [{"layer": layer.name, "shape": str(layer), "count": layer.count, "gflop": layer.gflop(), "relative_l2": layer.error,
             "onednn": layer.implementation, "kiln": layer.kernels, **summary(layer.times["kiln"], layer.times["onednn"])}
            for layer in layers]
    sums = {side: [sum(layer.count * layer.times[side][i] for layer in layers) for i in range(options.rounds)]
            for side in ("kiln", "onednn")}
    return {"model": options.model, "cpu": options.cpu, "precision": options.precision, "batch": options.batch,
            "threads": options.threads, "rounds": options.rounds, "onednn": peer.version, "layers": rows,
            "sum": {"count": sum(layer.count for layer in layers), "gflop": sum(layer.count * layer.gflop() for layer in layers),
                    **summary(sums["kiln"], sums["onednn"])}}


def print_table(result):
    def cells(first, row, theirs, ours):
        return [first, f"{row['count']}", f"{row['gflop']:.3g}", f"{row['onednn_ms']:.4g}", theirs, f"{row['kiln_ms']:.4g}", ours,
                f"{row['ratio']:.2f}", f"{row['ratio_min']:.2f} to {row['ratio_max']:.2f}"]

    table = [["layer", "times", "GFLOP", "oneDNN ms", "", "Kiln ms", "", "ratio", "range"]]
    table += [cells(row["shape"], row, row["onednn"], row["kiln"]) for row in result["layers"]]
    table.append(cells("sum", result["sum"], "", ""))
    widths = [max(map(len, column)) for column in zip(*table)]
    left = {0, 4, 6, 8}
    limited = f", both limited to {result['cpu']}" if result["cpu"] in MAX_CPU_ISA else ""
    print(f"{result['model']}, batch {result['batch']}, {result['threads']} thread(s), precision {result['precision']}{limited}, "
          f"oneDNN {result['onednn']}, {result['rounds']} round(s), relative L2 at most "
          f"{max(row['relative_l2'] for row in result['layers']):.2g}")
    for row in table:
        print("  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip())


def main():
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "onednn_conv")
        build_peer(program)
        os.environ["KILN_CACHE"] = os.path.join(folder, "cache")
        shapes = [f"--shape={s}" for s in options.shape]
        text = run_kiln([options.kiln, "compile", options.model, "--emit", "ir", "--stop-after", "infer", *shapes])
        layers, left_out = find_layers(text, options.batch)
        for line in left_out:
            print(f"left out: {line}", file=sys.stderr)
        if not layers:
            sys.exit(f"{options.model} has no convolution to compare")
        for number, layer in enumerate(layers):
            layer_folder = os.path.join(folder, str(number))
            os.mkdir(layer_folder)
            layer.prepare(layer_folder)
        result = compare(options, layers, Peer(program, options), Kiln(options))
    if options.json:
        print(json.dumps(result))
    else:
        print_table(result)


if __name__ == "__main__":
    main()
