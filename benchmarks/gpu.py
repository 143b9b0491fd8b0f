#!/usr/bin/env python3
"""Times a network on a GPU: Kiln, and PyTorch eager and compiled, on the same card in the same run.

    benchmarks/gpu.py KILN MODEL.json [--batches 1,16,64] [--modes fp32,tf32,bf16] [--limit SECONDS]

PyTorch runs in channels_last, its weights and input on the device, replayed as a CUDA graph: its best case without
writing kernels. torch.compile is asked for the same; it takes long, so its cells are filled while --limit lasts. Kiln's
figures are those of `kiln bench --device cuda`, by the same events. Each cell: median milliseconds of one batch.
Without PyTorch only Kiln's columns are printed. The network is ResNet-50, built here from torch.nn alone."""
import argparse
import json
import os
import subprocess
import sys
import time

# benchmarks/ holds namesakes of packages that PyTorch may import
sys.path = [p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(os.path.abspath(__file__))]


def kiln(program, model, math, batch, seconds):
    command = [program, "bench", model, "--device", "cuda", "--math", math, "--batch", str(batch), "--json",
               "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"kiln, {math}, batch {batch}: {done.stderr.strip()}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def resnet50(torch):
    nn = torch.nn

    class Bottleneck(nn.Module):
        def __init__(self, inputs, width, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(width)
            self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(4 * width)
            self.relu = nn.ReLU(inplace=True)
            self.downsample = None
            if stride != 1 or inputs != 4 * width:
                self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride, bias=False),
                                                nn.BatchNorm2d(4 * width))

        def forward(self, x):
            shortcut = x if self.downsample is None else self.downsample(x)
            y = self.relu(self.bn1(self.conv1(x)))
            y = self.relu(self.bn2(self.conv2(y)))
            return self.relu(self.bn3(self.conv3(y)) + shortcut)

    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, width, stride if block == 0 else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000)).eval()


def median_ms(torch, replay, seconds):
    for _ in range(3):
        replay()
    torch.cuda.synchronize()
    times, until = [], time.monotonic() + seconds
    while len(times) < 16 or time.monotonic() < until:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(17)]
        events[0].record()
        for event in events[1:]:
            replay()
            event.record()
        torch.cuda.synchronize()
        times += [a.elapsed_time(b) for a, b in zip(events, events[1:])]
    return sorted(times)[len(times) // 2]


def graph_of(torch, call):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def torch_ms(torch, mode, batch, seconds, compiled):
    tf32 = mode == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    dtype = torch.bfloat16 if mode == "bf16" else torch.float16 if mode == "fp16" else torch.float32
    network = resnet50(torch).to("cuda", dtype, memory_format=torch.channels_last)
    image = torch.rand(batch, 3, 224, 224, device="cuda").to(dtype).contiguous(memory_format=torch.channels_last)
    if compiled:
        torch._dynamo.reset()
        network = torch.compile(network, dynamic=False)
    with torch.inference_mode():
        return median_ms(torch, graph_of(torch, lambda: network(image)), seconds)


def attempt(what, action):
    try:
        return action()
    except Exception as error:  # a missing compiler, too little memory: said, not fatal
        print(f"{what}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", file=sys.stderr)
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kiln")
    parser.add_argument("model")
    parser.add_argument("--batches", default="1,16,64")
    parser.add_argument("--modes", default="fp32,tf32,bf16")
    parser.add_argument("--seconds", type=float, default=0.5, help="per cell")
    parser.add_argument("--limit", type=float, default=240, help="seconds for all; torch.compile is left out after it")
    arguments = parser.parse_args()
    started = time.monotonic()
    cells = [(mode, int(batch)) for mode in arguments.modes.split(",") for batch in arguments.batches.split(",")]
    try:
        import torch
        if not torch.cuda.is_available():
            print("PyTorch finds no GPU: its columns stay empty", file=sys.stderr)
            torch = None
    except ImportError:
        print("PyTorch is not installed: its columns stay empty", file=sys.stderr)
        torch = None
    rows = {}
    for mode, batch in cells:
        result = kiln(arguments.kiln, arguments.model, mode, batch, arguments.seconds)
        eager = attempt(f"torch, {mode}, batch {batch}",
                        lambda: torch_ms(torch, mode, batch, arguments.seconds, False)) if torch else None
        rows[mode, batch] = [result, eager, None]
    for mode, batch in cells if torch else []:
        if time.monotonic() - started > arguments.limit:
            print(f"torch.compile, {mode}, batch {batch}: left out, the time is up", file=sys.stderr)
            continue
        rows[mode, batch][2] = attempt(f"torch.compile, {mode}, batch {batch}",
                                       lambda: torch_ms(torch, mode, batch, arguments.seconds, True))

    def cell(value):
        return f"{value:9.3f}" if value else "        -"
    name = torch.cuda.get_device_name() if torch else ""
    print(f"{arguments.model}  {name}  {'PyTorch ' + torch.__version__ if torch else ''}")
    print("mode   batch      kiln     eager  compiled  kiln/best  TFLOP/s  first run   compile s")
    for (mode, batch), (result, eager, compiled) in rows.items():
        own = result["median_ms"] if result else None
        others = [value for value in (eager, compiled) if value]
        ratio = f"{own / min(others):9.2f}" if own and others else "        -"
        rest = f"{result['gflops'] / 1e3:8.1f} {result['first_run_ms']:10.1f} {result['compile_ms'] / 1e3:11.2f}" if result else ""
        print(f"{mode:6} {batch:5} {cell(own)} {cell(eager)} {cell(compiled)}  {ratio}  {rest}")


main()
