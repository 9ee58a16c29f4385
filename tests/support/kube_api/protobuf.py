"""The few objects that `kubectl create` sends as protobuf, read as if they had come as JSON.

The field numbers are those of Kubernetes' own `generated.proto` files, which change no number that is in use.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

MAGIC = b"k8s\x00"
_STRING, _BYTES, _MESSAGE = (
    descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
)
# A field's type; a pair is a map from strings.
_MESSAGES: dict[str, dict[int, tuple[str, Any]]] = {
    "TypeMeta": {1: ("apiVersion", _STRING), 2: ("kind", _STRING)},
    "Unknown": {1: ("typeMeta", "TypeMeta"), 2: ("raw", _BYTES)},
    "ObjectMeta": {1: ("name", _STRING), 3: ("namespace", _STRING), 11: ("labels", (_STRING,))},
    "Namespace": {1: ("metadata", "ObjectMeta")},
    "ConfigMap": {1: ("metadata", "ObjectMeta"), 2: ("data", (_STRING,))},
    "Secret": {1: ("metadata", "ObjectMeta"), 2: ("data", (_BYTES,)), 3: ("type", _STRING)},
}


def read(body: bytes) -> dict[str, Any]:
    """Return an object as its JSON.

    Raises:
        ValueError: if it is of a kind that is not known here, or none at all.
    """
    if not body.startswith(MAGIC):
        raise ValueError("not an object of Kubernetes")
    envelope = _CLASSES["Unknown"].FromString(body[len(MAGIC) :])
    kind = envelope.typeMeta.kind
    if kind not in _CLASSES:
        raise ValueError(f"{kind} is not read as protobuf here")
    found: dict[str, Any] = json_format.MessageToDict(_CLASSES[kind].FromString(envelope.raw))
    return {"apiVersion": envelope.typeMeta.apiVersion, "kind": kind, **found}


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="kube.proto", package="kube", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in fields.items():
            made = message.field.add(name=field, json_name=field, number=number, label=1, type=_MESSAGE)
            if isinstance(kind, str):
                made.type_name = f".kube.{kind}"
            elif isinstance(kind, tuple):
                entry = message.nested_type.add(name=f"{field.capitalize()}Entry")
                entry.options.map_entry = True
                entry.field.add(name="key", number=1, label=1, type=_STRING)
                entry.field.add(name="value", number=2, label=1, type=kind[0])
                made.label, made.type_name = 3, f".kube.{name}.{entry.name}"
            else:
                made.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"kube.{name}")) for name in _MESSAGES}


_CLASSES = _classes()
