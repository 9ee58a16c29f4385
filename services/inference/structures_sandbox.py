"""`python -m services.inference.structures_sandbox MODEL SECONDS MIB`: compile structures, follow each a little.

Each is tried in a fork of its own, which the system ends once it has taken too much processor time or memory: the next
one finds everything imported. Answers `good`, `bad` or `ended`, a line each.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

from services.common.memory import importing
from services.inference.orphans import end_with_parent

_FOLLOWED = 64  # tokens


def main(model: str, seconds: float, mebibytes: int) -> None:
    """Answer until standard input ends."""
    end = end_with_parent(signal.SIGKILL)
    end()
    with importing():
        import xgrammar
        from transformers import AutoConfig, AutoTokenizer

    size = AutoConfig.from_pretrained(model, local_files_only=True).get_text_config().vocab_size
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size)
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            end()
            _limit(seconds, mebibytes)
            os._exit(_try(xgrammar, compiler, json.loads(line), size))
        _, status = os.waitpid(child, 0)
        print("ended" if os.WIFSIGNALED(status) else "bad" if status else "good", flush=True)


def _limit(seconds: float, mebibytes: int) -> None:
    """Let this process end when it has taken more."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Ends a process that has not asked for the signal, whatever native code it is in.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    if sys.platform.startswith("linux"):
        with open("/proc/self/statm") as pages:
            used = int(pages.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + (mebibytes << 20),) * 2)


def _try(xgrammar: Any, compiler: Any, job: dict[str, str], size: int) -> int:
    """Return 0 if a structure can be kept, else 1."""
    try:
        if job["field"] == "regex":
            grammar = compiler.compile_regex(job["text"])
        else:
            grammar = compiler.compile_json_schema(job["text"], any_whitespace=False)
        _follow(xgrammar, grammar, size)
    except Exception:
        return 1
    return 0


def _follow(xgrammar: Any, grammar: Any, size: int) -> None:
    """Take tokens that the structure allows, spread over all of them: some are dearer to follow than others."""
    matcher = xgrammar.GrammarMatcher(grammar)
    mask = xgrammar.allocate_token_bitmask(1, size)
    for step in range(_FOLLOWED):
        if matcher.is_terminated():
            return
        matcher.fill_next_token_bitmask(mask)
        bits = (mask[0, :, None] >> _bits()) & 1
        allowed = bits.flatten()[:size].nonzero().flatten()
        if not len(allowed):
            raise ValueError("no output can satisfy it")
        matcher.accept_token(int(allowed[step * 7919 % len(allowed)]))


def _bits() -> Any:
    import torch

    return torch.arange(32, dtype=torch.int32)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
