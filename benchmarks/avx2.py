#!/usr/bin/env python3
"""How good Kiln's AVX2 code (--cpu x86-64-v3) is, on whatever processor this is.

    benchmarks/avx2.py --kiln build/kiln --threads 1

1. The share of the AVX2 peak that one direct 3x3 convolution reaches, 64 channels to 64 at 56x56. Every round is one
   `kiln bench --kernels`, which times the kernel and then the multiply-adds that the processor can do in vectors of 256
   bits; the share is taken within a round, and the median over the rounds counts.
2. The same convolution and networks against onnxruntime limited to AVX2, where it can be (benchmarks/onnxruntime.py
   --cpu x86-64-v3 says what that needs); without onnxruntime, or where it cannot be limited, the line says so.
3. For information, how much faster AVX-512 code is, rounds taking turns, where the processor has it.

Needs Python only, and onnxruntime.py's packages for part 2. Where others use the machine, begin with `chrt -f 50`: a
kernel that is interrupted for a time slice takes three times as long, and so do most runs.
"""

import argparse
import csv
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile

LEVELS = ["x86-64-v3", "x86-64-v4"]
CONVOLUTION = {"kiln": 1, "name": "direct_64_56", "inputs": {"x": {"shape": ["N", 64, 56, 56]}},
               "layers": [{"op": "conv2d", "name": "conv", "out_channels": 64, "kernel": 3, "padding": 1, "bias": False}]}
HERE = os.path.dirname(os.path.abspath(__file__))


class Failure(Exception):
    pass


def run(arguments):
    result = subprocess.run(arguments, capture_output=True, text=True)
    if result.returncode != 0:
        raise Failure(f"{' '.join(arguments)} failed:\n{result.stderr.strip()}")
    return result.stdout


def bench(options, model, cpu, *more):
    return run([options.kiln, "bench", model, "--cpu", cpu, "--threads", str(options.threads), *more])


def middle(values, scale=1.0):
    return f"{scale * statistics.median(values):.1f} ({scale * min(values):.1f} to {scale * max(values):.1f})"


def convolution_rates(options, model, cpu):
    """GFLOP/s of the direct convolution in one process, and that process's peak."""
    text = bench(options, model, cpu, "--precision", "strict", "--seconds", "0.3", "--kernels", "--csv")
    for row in csv.DictReader(io.StringIO(text)):
        if row["kernel"] == "conv2d/direct":
            return float(row["gflops"]), float(row["roof_gflops"])
    raise Failure(f"no kernel conv2d/direct among:\n{text}")


def report_shares(options, levels, model):
    rates = {level: [] for level in levels}
    for _ in range(options.rounds):
        for level in levels:
            rates[level].append(convolution_rates(options, model, level))
    print(f"conv2d 64 to 64, 3x3, 56x56, direct, {options.threads} thread(s), {options.rounds} rounds, medians and ranges:")
    for level in levels:
        found, peaks = zip(*rates[level])
        print(f"  {level}: {middle(found)} GFLOP/s of {middle(peaks)}, {middle([a / b for a, b in rates[level]], 100)} % of the peak")


def milliseconds(options, model, cpu):
    return json.loads(bench(options, model, cpu, "--seconds", "1", "--json"))["median_ms"]


def report_levels(options, levels, model):
    times = {level: [] for level in levels}
    for _ in range(options.rounds):
        for level in levels:
            times[level].append(milliseconds(options, model, level))
    line = "   ".join(f"{level} {middle(times[level])} ms" for level in levels)
    if len(levels) > 1:
        line += f"   {statistics.median(a / b for a, b in zip(*(times[level] for level in levels))):.2f}x"
    print(f"{os.path.basename(model)}, {options.threads} thread(s): {line}")


def report_onnxruntime(options, model, precision):
    """False where onnxruntime is missing or cannot be limited."""
    command = [options.python, os.path.join(HERE, "onnxruntime.py"), model, "--kiln", options.kiln, "--threads",
               str(options.threads), "--cpu", "x86-64-v3", "--precision", precision, "--rounds", str(options.rounds)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        print(f"against onnxruntime: {result.stderr.strip()}")
        return False
    print(result.stdout.strip())
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kiln", default="kiln", help="the kiln program (default: from PATH)")
    parser.add_argument("--python", default=sys.executable, help="a Python that has onnxruntime (default: this one)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="*", help="networks (default: ResNet-34 and ResNet-50 of the examples)")
    options = parser.parse_args()
    examples = os.path.join(os.path.dirname(HERE), "examples")
    models = options.models if options.models is not None else [os.path.join(examples, f"resnet{n}.json") for n in (34, 50)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KILN_CACHE"] = os.path.join(folder, "cache")
        convolution = os.path.join(folder, CONVOLUTION["name"] + ".json")
        with open(convolution, "w", encoding="utf-8") as file:
            json.dump(CONVOLUTION, file)
        try:
            convolution_rates(options, convolution, LEVELS[0])
            levels = LEVELS[:1]
            try:
                convolution_rates(options, convolution, LEVELS[1])
                levels = LEVELS
            except Failure as failure:
                print(f"without AVX-512: {failure}", file=sys.stderr)
            report_shares(options, levels, convolution)
            if report_onnxruntime(options, convolution, "strict"):
                for model in models:
                    report_onnxruntime(options, model, "default")
            for model in models:
                report_levels(options, levels, model)
        except (Failure, OSError) as failure:
            sys.exit(str(failure))


if __name__ == "__main__":
    main()
