#!/usr/bin/env python3
"""Compares Kiln with onnxruntime on the same network, weights and input.

    benchmarks/onnxruntime.py examples/resnet34.json --kiln build/kiln --threads 2 --batch 16

The ONNX model is made from Kiln's own imported graph (`kiln compile --emit ir --stop-after infer`), before any of
its passes. Both must agree to a relative L2 of 1e-4 before anything is timed. Timing alternates: a round of
onnxruntime, a round of Kiln, and so on, because machines change their speed; the ratio is the median of the rounds'
ratios.

--cpu x86-64-v3 compiles for AVX2 and limits onnxruntime to it too; x86-64-v2 likewise, SSE4.2. onnxruntime 1.31 has no
option or variable for that: it asks the processor, which cpuid_limit.c lets answer less. That needs Linux on an
x86-64 processor with CPUID faulting (cpuid_fault in /proc/cpuinfo; Intel's have it) and a C compiler.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from graph_text import NODE, OUTPUT, PORT, name_of, operands_of, parse_attributes, parse_dims, run_kiln

PACKAGES = ["numpy", "onnx", "onnxruntime", "safetensors"]
LIMITED_LEVELS = {"x86-64-v2": 2, "x86-64-v3": 3}
EXIT_NO_LIMIT = 3  # avx2.py then does without
# benchmarks/ holds this file's namesake: the package must be found first.
sys.path = [p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(os.path.abspath(__file__))]


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a description, e.g. examples/resnet34.json")
    parser.add_argument("--kiln", default="kiln", help="the kiln program (default: from PATH)")
    parser.add_argument("--weights", help="a safetensors file (default: kiln init)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=11, help="rounds of each program")
    parser.add_argument("--runs", type=int, default=10, help="runs in a round, whose median counts")
    parser.add_argument("--precision", default="default", help="kiln's --precision")
    parser.add_argument("--cpu", default="native", help="kiln's --cpu; onnxruntime is limited to x86-64-v3 or v2 too")
    parser.add_argument("--shape", action="append", default=[], help="kiln's --shape, e.g. image=Nx3x352x352")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def limit_processor(cpu):
    """Before anything is imported that asks the processor. Returns a function that counts its answers so far."""
    if cpu not in LIMITED_LEVELS:
        return lambda: 0
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cpuid_limit.c")
        library = os.path.join(folder, "cpuid_limit.so")
        compiler = os.environ.get("CC", "cc").split()
        try:
            built = subprocess.run([*compiler, "-O2", "-shared", "-fPIC", "-o", library, source], capture_output=True, text=True)
        except OSError as error:
            give_up(cpu, str(error))
        if built.returncode != 0:
            give_up(cpu, f"{compiler[0]} failed: {built.stderr.strip()}")
        limiter = ctypes.CDLL(library)
    code = limiter.cpuid_limit(LIMITED_LEVELS[cpu])
    if code != 0:
        give_up(cpu, f"CPUID faulting: {os.strerror(code)}")
    limiter.cpuid_answered.restype = ctypes.c_long
    return limiter.cpuid_answered


def give_up(cpu, reason):
    print(f"onnxruntime cannot be limited to {cpu} here: {reason}", file=sys.stderr)
    sys.exit(EXIT_NO_LIMIT)


OPTIONS = parse_options()
CPUID_ANSWERED = limit_processor(OPTIONS.cpu)
try:
    import numpy as np
    import onnx
    import onnxruntime
    import safetensors.numpy
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    sys.exit(f"{error}\nThis script needs: pip install {' '.join(PACKAGES)}")

RELATIVE_ERROR = 1e-4
OPSET = 20


class Converter:
    """Graph text to ONNX; one method per op that needs more than a name."""

    RENAMED = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div",
               "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "abs": "Abs", "neg": "Neg", "identity": "Identity",
               "dropout": "Identity"}

    def __init__(self, text, weights, batch):
        self.batch, self.weights, self.nodes, self.constants = batch, weights, [], {}
        self.inputs, self.outputs, self.shapes = {}, [], {}
        for line in text.splitlines():
            if match := PORT.match(line):
                kind, name, _, dims = match.groups()
                name = name_of(name)
                self.shapes[name] = parse_dims(dims, batch)
                if kind == "input":
                    self.inputs[name] = self.shapes[name]
                else:
                    self.constants[name] = weights[name].astype(np.float32)
            elif match := OUTPUT.match(line):
                self.outputs.append(tuple(name_of(t) for t in match.groups()))
            elif match := NODE.match(line):
                self.node(match)

    def node(self, match):
        name, op, operands = name_of(match.group(1)), match.group(2), match.group(3)
        inputs = operands_of(operands)
        self.shapes[name] = parse_dims(match.group(7), self.batch)
        attributes = parse_attributes(match.group(5))
        if op in self.RENAMED:
            self.add(self.RENAMED[op], inputs, name)
        elif hasattr(self, "op_" + op):
            getattr(self, "op_" + op)(name, inputs, attributes)
        else:
            sys.exit(f"'{name}': this script does not convert op '{op}'")

    def add(self, op, inputs, name, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))

    def constant(self, name, value):
        self.constants[name] = np.asarray(value)
        return name

    def window(self, attributes, kernel):
        return {"kernel_shape": kernel, "strides": attributes.get("stride", [1, 1]), "pads": attributes.get("padding", [0] * 4),
                "dilations": attributes.get("dilation", [1, 1])}

    def op_conv2d(self, name, inputs, a):
        if a.get("padding_mode", "zeros") != "zeros":
            sys.exit(f"'{name}': this script does not convert padding_mode {a['padding_mode']}")
        self.add("Conv", inputs, name, group=a.get("groups", 1), **self.window(a, self.shapes[inputs[1]][2:]))

    def op_conv_transpose2d(self, name, inputs, a):
        self.add("ConvTranspose", inputs, name, group=a.get("groups", 1), output_padding=a.get("output_padding", [0, 0]),
                 **self.window(a, self.shapes[inputs[1]][2:]))

    def op_batch_norm(self, name, inputs, a):
        self.add("BatchNormalization", inputs, name, epsilon=a.get("eps", 1e-5))

    def op_max_pool2d(self, name, inputs, a):
        self.add("MaxPool", inputs, name, ceil_mode=int(a.get("ceil_mode", False)), **self.window(a, a.get("kernel", [1, 1])))

    def op_avg_pool2d(self, name, inputs, a):
        self.add("AveragePool", inputs, name, ceil_mode=int(a.get("ceil_mode", False)),
                 count_include_pad=int(a.get("count_include_pad", True)), **self.window(a, a.get("kernel", [1, 1])))

    def global_pool(self, op, name, inputs, a):
        if a.get("output", [1, 1]) != [1, 1]:
            sys.exit(f"'{name}': this script converts adaptive pooling to 1x1 only")
        self.add(op, inputs, name)

    def op_adaptive_avg_pool2d(self, name, inputs, a):
        self.global_pool("GlobalAveragePool", name, inputs, a)

    def op_adaptive_max_pool2d(self, name, inputs, a):
        self.global_pool("GlobalMaxPool", name, inputs, a)

    def op_adaptive_concat_pool2d(self, name, inputs, a):
        self.global_pool("GlobalMaxPool", name + ".max", inputs, a)
        self.global_pool("GlobalAveragePool", name + ".avg", inputs, a)
        self.add("Concat", [name + ".max", name + ".avg"], name, axis=1)

    def op_linear(self, name, inputs, a):
        weight = inputs[1] + ".transposed"
        self.constant(weight, np.ascontiguousarray(self.constants[inputs[1]].T))
        if len(inputs) < 3 or len(self.shapes[name]) > 2:
            self.add("MatMul", [inputs[0], weight], name + ".product" if len(inputs) > 2 else name)
            if len(inputs) > 2:
                self.add("Add", [name + ".product", inputs[2]], name)
        else:
            self.add("Gemm", [inputs[0], weight, inputs[2]], name)

    def op_flatten(self, name, inputs, a):
        self.op_reshape(name, inputs, a)

    def op_reshape(self, name, inputs, a):
        self.add("Reshape", [inputs[0], self.constant(name + ".shape", np.array(self.shapes[name], np.int64))], name)

    def op_concat(self, name, inputs, a):
        self.add("Concat", inputs, name, axis=a.get("dim", 1))

    def op_softmax(self, name, inputs, a):
        self.add("Softmax", inputs, name, axis=a.get("dim", 1))

    def op_log_softmax(self, name, inputs, a):
        self.add("LogSoftmax", inputs, name, axis=a.get("dim", 1))

    def op_leaky_relu(self, name, inputs, a):
        self.add("LeakyRelu", inputs, name, alpha=a.get("negative_slope", 0.01))

    def op_silu(self, name, inputs, a):
        self.add("Sigmoid", inputs, name + ".sigmoid")
        self.add("Mul", [inputs[0], name + ".sigmoid"], name)

    def op_gelu(self, name, inputs, a):
        self.add("Gelu", inputs, name, approximate=a.get("approximate", "none"))

    def op_clamp(self, name, inputs, a):
        low = self.constant(name + ".min", np.float32(a.get("min", -np.inf)))
        self.add("Clip", [inputs[0], low, self.constant(name + ".max", np.float32(a.get("max", np.inf)))], name)

    def model(self):
        used = {i for node in self.nodes for i in node.input}
        initializers = [numpy_helper.from_array(v, k) for k, v in self.constants.items() if k in used]
        values = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ports]
                  for ports in (self.inputs.items(), [(v, self.shapes[v]) for _, v in self.outputs])]
        graph = helper.make_graph(self.nodes, "kiln", values[0], values[1], initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = 10
        onnx.checker.check_model(model)
        return model


class KilnServer:
    """`kiln bench --serve`: a line in, the median of some runs in milliseconds out."""

    def __init__(self, arguments):
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def round(self):
        self.process.stdin.write("run\n")
        line = self.process.stdout.readline()
        if not line:
            sys.exit("kiln bench ended early")
        return float(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def main():
    options = OPTIONS
    shapes = [f"--shape={s}" for s in options.shape]
    with tempfile.TemporaryDirectory() as folder:
        weights = options.weights
        if weights is None:
            weights = os.path.join(folder, "weights.safetensors")
            run_kiln([options.kiln, "init", options.model, "--seed", "1", "-o", weights, *shapes])
        text = run_kiln([options.kiln, "compile", options.model, "--emit", "ir", "--stop-after", "infer", *shapes])
        converter = Converter(text, safetensors.numpy.load_file(weights), options.batch)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(converter.model().SerializeToString(), settings, providers=["CPUExecutionProvider"])

        random = np.random.default_rng(1)
        inputs = {n: random.standard_normal(s, dtype=np.float32) for n, s in converter.inputs.items()}
        input_file, output_file = os.path.join(folder, "inputs.safetensors"), os.path.join(folder, "outputs.safetensors")
        safetensors.numpy.save_file(inputs, input_file)
        common = ["--weights", weights, "--batch", str(options.batch), "--threads", str(options.threads), "--precision",
                  options.precision, "--cpu", options.cpu, *shapes]
        run_kiln([options.kiln, "run", options.model, "--inputs", input_file, "--outputs", output_file, "--top", "0", *common])
        ours = safetensors.numpy.load_file(output_file)
        worst = 0.0
        for (name, _), expected in zip(converter.outputs, session.run(None, inputs)):
            error = np.linalg.norm(ours[name] - expected) / max(np.linalg.norm(expected), 1e-30)
            worst = max(worst, float(error))
            if not error <= RELATIVE_ERROR:
                sys.exit(f"output '{name}' differs: relative L2 {error:.3g}, expected at most {RELATIVE_ERROR:g}")

        server = KilnServer([options.kiln, "bench", options.model, "--serve", "--rounds", str(options.runs), *common])
        times = {"onnxruntime": [], "kiln": []}
        server.round()
        asked = CPUID_ANSWERED()
        for _ in range(options.rounds):
            samples = []
            for _ in range(options.runs):
                started = time.perf_counter()
                session.run(None, inputs)
                samples.append(1e3 * (time.perf_counter() - started))
            times["onnxruntime"].append(statistics.median(samples))
            time.sleep(0.05)  # its threads spin for a while after a run
            times["kiln"].append(server.round())
            time.sleep(0.05)
        server.close()
        if CPUID_ANSWERED() != asked:
            sys.exit("onnxruntime asked the processor what it is while it was timed: its times are not its own")

    ratios = [a / b for a, b in zip(times["onnxruntime"], times["kiln"])]
    result = {"model": options.model, "cpu": options.cpu, "batch": options.batch, "threads": options.threads, "relative_l2": worst,
              "onnxruntime": onnxruntime.__version__, "onnxruntime_ms": statistics.median(times["onnxruntime"]),
              "kiln_ms": statistics.median(times["kiln"]), "ratio": statistics.median(ratios), "ratio_min": min(ratios),
              "ratio_max": max(ratios)}
    if options.json:
        print(json.dumps(result))
        return
    limited = f"  both limited to {options.cpu}" if options.cpu in LIMITED_LEVELS else ""
    print(f"{options.model}  batch {options.batch}  {options.threads} thread(s){limited}  relative L2 {worst:.2g}")
    print(f"onnxruntime {onnxruntime.__version__}: {result['onnxruntime_ms']:.3f} ms   kiln: {result['kiln_ms']:.3f} ms   "
          f"kiln is {result['ratio']:.2f}x as fast ({result['ratio_min']:.2f} to {result['ratio_max']:.2f} over {options.rounds} rounds)")


if __name__ == "__main__":
    main()
