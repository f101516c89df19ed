"""LoraConfig, in 1.0."""

from tensorrt_llm.recorded import class_of, is_there, signatures

for _name, _entry in signatures().items():
    if is_there(_name) and _entry.get("module") == __name__:
        globals()[_name] = class_of(_name)
