#!/usr/bin/env python3
"""Times ResNet-50 on a GPU: Kiln, and PyTorch eager and compiled, on the same card in the same run.

    benchmarks/gpu.py KILN MODEL.json [--batches 1,16,64] [--modes fp32,tf32,bf16] [--limit SECONDS]

PyTorch runs in channels_last, its weights and input on the device, replayed as a CUDA graph: its best case with the
network as it is. torch.compile is asked for the same; it takes long, so its cells are filled while --limit lasts, the
largest batches first. Kiln's figures are those of `kiln bench --device cuda`, by the same events. Each cell: median
milliseconds of one batch. PyTorch runs in a process of its own, which is ended and started again when a cell takes too
long or breaks it: whatever happens, the table of the other cells is printed last. Without PyTorch only Kiln's columns are
filled. The network is built here from torch.nn alone."""
import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time

EAGER_LIMIT, COMPILED_LIMIT, KILN_LIMIT = 90, 150, 60  # seconds of a cell

# benchmarks/ holds namesakes of packages that PyTorch may import
sys.path = [p for p in sys.path if os.path.abspath(p or ".") != os.path.dirname(os.path.abspath(__file__))]


# --- PyTorch, in a process of its own ------------------------------------------------------------------------

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


def torch_ms(torch, device, mode, batch, seconds, compiled):
    tf32 = mode == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    dtype = torch.bfloat16 if mode == "bf16" else torch.float16 if mode == "fp16" else torch.float32
    network = resnet50(torch).to(device, dtype, memory_format=torch.channels_last)
    image = torch.rand(batch, 3, 224, 224, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
    if compiled:
        torch._dynamo.reset()
        network = torch.compile(network, dynamic=False)
    with torch.inference_mode():
        if device == "cuda":
            return median_ms(torch, graph_of(torch, lambda: network(image)), seconds)
        network(image)
        begin = time.perf_counter()
        network(image)
        return 1e3 * (time.perf_counter() - begin)


def work(device):
    """Says what PyTorch this is, then answers a line of JSON with a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nobody else's lines among the answers

    def answer(**fields):
        print(json.dumps(fields), file=answers, flush=True)
    try:
        import torch
        if device == "cuda" and not torch.cuda.is_available():
            return answer(error="PyTorch finds no GPU")
        name = torch.cuda.get_device_name() if device == "cuda" else device
    except Exception as error:
        return answer(error=f"no PyTorch: {type(error).__name__}: {error}")
    answer(version=torch.__version__, name=name)
    for line in sys.stdin:
        cell = json.loads(line)
        try:
            answer(ms=torch_ms(torch, device, cell["mode"], cell["batch"], cell["seconds"], cell["compiled"]))
        except Exception as error:  # a missing compiler, too little memory
            answer(error=f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")


class PyTorch:
    def __init__(self, python, device):
        self.command = [python, os.path.abspath(__file__), "--work", device]
        self.process, self.name, self.missing, self.greeted = None, "", False, False

    def read(self, limit):
        try:
            line = self.lines.get(timeout=max(limit, 0.1))
        except queue.Empty:
            self.stop()
            return {"error": f"no answer within {limit:.0f} s: ended"}
        if not line:
            code = self.process.wait()
            self.stop()
            return {"error": f"its process ended with status {code}"}
        return json.loads(line)

    def start(self):
        self.greeted = False
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines = queue.Queue()

        def feed(stream, lines):
            for line in stream:
                lines.put(line)
            lines.put("")
        threading.Thread(target=feed, args=(self.process.stdout, self.lines), daemon=True).start()

    def greet(self, limit):
        """Waits for it to have loaded, once."""
        if not self.process:
            self.start()
        if self.greeted:
            return {}
        hello = self.read(limit)
        self.greeted = "error" not in hello
        if self.greeted:
            self.name = f"PyTorch {hello['version']}, {hello['name']}"
        else:
            self.missing = True  # and will be the next time
            self.stop()
        return hello

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
        self.process = None

    def ms(self, mode, batch, seconds, compiled, limit):
        what = f"{'torch.compile' if compiled else 'PyTorch'}, {mode}, batch {batch}"
        if self.missing:
            return None
        until = time.monotonic() + limit
        result = self.greet(limit)
        if "error" not in result:
            cell = {"mode": mode, "batch": batch, "seconds": seconds, "compiled": compiled}
            try:
                self.process.stdin.write(json.dumps(cell) + "\n")
                self.process.stdin.flush()
                result = self.read(until - time.monotonic())
            except OSError as error:
                self.stop()
                result = {"error": str(error)}
        if "error" in result:
            note(f"{what}: {result['error']}")
            # after an error of CUDA nothing more works in that process
            if "CUDA" in result["error"] or "cuda" in result["error"]:
                self.stop()
        return result.get("ms")


# --- Kiln ----------------------------------------------------------------------------------------------------

def kiln(program, model, math, batch, seconds, limit):
    command = [program, "bench", model, "--device", "cuda", "--math", math, "--batch", str(batch), "--json",
               "--seconds", str(seconds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(limit, 1))
        if done.returncode == 0:
            return json.loads(done.stdout)
        message = done.stderr.strip() or f"status {done.returncode}"
    except subprocess.TimeoutExpired:
        message = f"not ready after {limit:.0f} s: ended"
    except (OSError, ValueError) as error:
        message = str(error)
    note(f"kiln, {math}, batch {batch}: {message}")
    return None


# --- both ----------------------------------------------------------------------------------------------------

def note(text):
    print(text, file=sys.stderr, flush=True)


class TimeUp(Exception):
    pass


def time_up(number, frame):
    raise TimeUp


def measure(arguments, torch, rows):
    """Fills `rows`, so that what is measured stays there when the time is up."""
    until = time.monotonic() + arguments.limit

    def left(most):
        return min(most, until - time.monotonic())
    torch.start()  # it takes seconds to load, on a processor of its own
    for (mode, batch), row in rows.items():
        row[0] = kiln(arguments.kiln, arguments.model, mode, batch, arguments.seconds, left(KILN_LIMIT))
    for (mode, batch), row in rows.items():
        row[1] = torch.ms(mode, batch, arguments.seconds, False, left(EAGER_LIMIT))
    for (mode, batch), row in sorted(rows.items(), key=lambda item: -item[0][1]):
        if torch.missing:
            return
        if left(1) <= 0:
            note(f"torch.compile, {mode}, batch {batch}: left out, the time is up")
            continue
        row[2] = torch.ms(mode, batch, arguments.seconds, True, left(COMPILED_LIMIT))


def print_table(arguments, torch, rows):
    def cell(value):
        return f"{value:9.3f}" if value else "        -"
    print(f"{os.path.basename(arguments.model)}, ms of a batch  {torch.name}")
    print("mode   batch      kiln     eager  compiled  kiln/best  TFLOP/s  first run  compile s")
    for (mode, batch), (result, eager, compiled) in rows.items():
        own = result["median_ms"] if result else None
        others = [value for value in (eager, compiled) if value]
        ratio = f"{own / min(others):9.2f}" if own and others else "        -"
        rest = f"{result['gflops'] / 1e3:8.1f} {result['first_run_ms']:10.1f} {result['compile_ms'] / 1e3:10.2f}" if result else ""
        print(f"{mode:6} {batch:5} {cell(own)} {cell(eager)} {cell(compiled)}  {ratio}  {rest}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kiln")
    parser.add_argument("model")
    parser.add_argument("--batches", default="1,16,64")
    parser.add_argument("--modes", default="fp32,tf32,bf16")
    parser.add_argument("--seconds", type=float, default=0.5, help="per cell")
    parser.add_argument("--limit", type=float, default=240, help="seconds for all; what they do not suffice for is left out")
    parser.add_argument("--python", default=sys.executable, help="the Python that has PyTorch")
    parser.add_argument("--torch-device", default="cuda", help="cpu tries this program itself, where there is no GPU")
    arguments = parser.parse_args()
    cells = [(mode, int(batch)) for mode in arguments.modes.split(",") for batch in arguments.batches.split(",")]
    rows = {cell: [None, None, None] for cell in cells}
    torch = PyTorch(arguments.python, arguments.torch_device)
    signal.signal(signal.SIGTERM, time_up)
    try:
        measure(arguments, torch, rows)
    except (TimeUp, KeyboardInterrupt):
        note("the time is up")
    torch.stop()
    print_table(arguments, torch, rows)
    return 0 if all(row[0] for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(work(sys.argv[2]) if sys.argv[1:2] == ["--work"] else main())
