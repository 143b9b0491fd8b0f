"""Reads the text of Kiln's graphs (ir/IR.md), as far as the scripts beside this one need it. Needs Python only."""

import json
import re
import subprocess
import sys

VALUE = r'%("(?:[^"\\]|\\.)*"|[^\s,@:]+)'
NODE = re.compile(rf"^\s*{VALUE}(?:@\d+)? = (\w+)\s*((?:{VALUE}(?:, )?)*)\s*(?:\{{(.*?)\}})? : (\w+)\[(.*?)\]")
PORT = re.compile(rf"^\s*(input|parameter) {VALUE}(?:@\d+)? : (\w+)\[(.*?)\]")
OUTPUT = re.compile(rf'^\s*output ("(?:[^"\\]|\\.)*"|\S+) = {VALUE}')


def name_of(text):
    return json.loads(text) if text.startswith('"') else text


def operands_of(text):
    return [name_of(t) for t in re.findall(VALUE, text)]


def parse_attributes(text):
    """'stride=[2,2], p=0.5, mode=nearest' as a dictionary."""
    result = {}
    for key, value in re.findall(r"(\w+)=(\[[^\]]*\]|[^,]+)", text or ""):
        try:
            result[key] = json.loads(value)
        except ValueError:
            result[key] = {"inf": float("inf"), "-inf": float("-inf")}.get(value, value)
    return result


def parse_dims(text, batch):
    return [batch if d == "N" else int(d) for d in text.split(",") if d]


def run_kiln(arguments):
    try:
        result = subprocess.run(arguments, capture_output=True, text=True)
    except OSError as error:
        sys.exit(f"{arguments[0]} cannot be run: {error.strerror}")
    if result.returncode != 0:
        sys.exit(f"{' '.join(arguments)} failed:\n{result.stderr}")
    return result.stdout
