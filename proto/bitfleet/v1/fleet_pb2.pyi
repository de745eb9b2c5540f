from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DeviceState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEVICE_STATE_UNSPECIFIED: _ClassVar[DeviceState]
    DEVICE_STATE_IDLE: _ClassVar[DeviceState]
    DEVICE_STATE_DOWNLOADING: _ClassVar[DeviceState]
    DEVICE_STATE_TRAINING: _ClassVar[DeviceState]
    DEVICE_STATE_SUBMITTING: _ClassVar[DeviceState]

class TaskOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_OUTCOME_UNSPECIFIED: _ClassVar[TaskOutcome]
    TASK_OUTCOME_DECLINED: _ClassVar[TaskOutcome]
    TASK_OUTCOME_FAILED: _ClassVar[TaskOutcome]
    TASK_OUTCOME_ABANDONED: _ClassVar[TaskOutcome]

class SubmitStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUBMIT_STATUS_UNSPECIFIED: _ClassVar[SubmitStatus]
    SUBMIT_STATUS_ACCEPTED: _ClassVar[SubmitStatus]
    SUBMIT_STATUS_DUPLICATE: _ClassVar[SubmitStatus]
    SUBMIT_STATUS_LATE: _ClassVar[SubmitStatus]
    SUBMIT_STATUS_REJECTED: _ClassVar[SubmitStatus]
DEVICE_STATE_UNSPECIFIED: DeviceState
DEVICE_STATE_IDLE: DeviceState
DEVICE_STATE_DOWNLOADING: DeviceState
DEVICE_STATE_TRAINING: DeviceState
DEVICE_STATE_SUBMITTING: DeviceState
TASK_OUTCOME_UNSPECIFIED: TaskOutcome
TASK_OUTCOME_DECLINED: TaskOutcome
TASK_OUTCOME_FAILED: TaskOutcome
TASK_OUTCOME_ABANDONED: TaskOutcome
SUBMIT_STATUS_UNSPECIFIED: SubmitStatus
SUBMIT_STATUS_ACCEPTED: SubmitStatus
SUBMIT_STATUS_DUPLICATE: SubmitStatus
SUBMIT_STATUS_LATE: SubmitStatus
SUBMIT_STATUS_REJECTED: SubmitStatus

class ConnectRequest(_message.Message):
    __slots__ = ("hello", "heartbeat", "report")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    heartbeat: Heartbeat
    report: TaskReport
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., report: _Optional[_Union[TaskReport, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_min", "protocol_max", "client_version", "device_id", "data", "capabilities", "conditions")
    PROTOCOL_MIN_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MAX_FIELD_NUMBER: _ClassVar[int]
    CLIENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    protocol_min: int
    protocol_max: int
    client_version: str
    device_id: str
    data: DataSummary
    capabilities: Capabilities
    conditions: Conditions
    def __init__(self, protocol_min: _Optional[int] = ..., protocol_max: _Optional[int] = ..., client_version: _Optional[str] = ..., device_id: _Optional[str] = ..., data: _Optional[_Union[DataSummary, _Mapping]] = ..., capabilities: _Optional[_Union[Capabilities, _Mapping]] = ..., conditions: _Optional[_Union[Conditions, _Mapping]] = ...) -> None: ...

class DataSummary(_message.Message):
    __slots__ = ("classes", "input_shape", "num_examples")
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    INPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedScalarFieldContainer[str]
    input_shape: _containers.RepeatedScalarFieldContainer[int]
    num_examples: int
    def __init__(self, classes: _Optional[_Iterable[str]] = ..., input_shape: _Optional[_Iterable[int]] = ..., num_examples: _Optional[int] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("isa", "threads", "memory_bytes", "machine")
    ISA_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    isa: str
    threads: int
    memory_bytes: int
    machine: str
    def __init__(self, isa: _Optional[str] = ..., threads: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., machine: _Optional[str] = ...) -> None: ...

class Conditions(_message.Message):
    __slots__ = ("on_battery", "metered", "too_hot")
    ON_BATTERY_FIELD_NUMBER: _ClassVar[int]
    METERED_FIELD_NUMBER: _ClassVar[int]
    TOO_HOT_FIELD_NUMBER: _ClassVar[int]
    on_battery: bool
    metered: bool
    too_hot: bool
    def __init__(self, on_battery: _Optional[bool] = ..., metered: _Optional[bool] = ..., too_hot: _Optional[bool] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("state", "task_id", "step", "total_steps", "pss_bytes", "conditions")
    STATE_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    PSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    state: DeviceState
    task_id: str
    step: int
    total_steps: int
    pss_bytes: int
    conditions: Conditions
    def __init__(self, state: _Optional[_Union[DeviceState, str]] = ..., task_id: _Optional[str] = ..., step: _Optional[int] = ..., total_steps: _Optional[int] = ..., pss_bytes: _Optional[int] = ..., conditions: _Optional[_Union[Conditions, _Mapping]] = ...) -> None: ...

class TaskReport(_message.Message):
    __slots__ = ("task_id", "outcome", "reason")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    outcome: TaskOutcome
    reason: str
    def __init__(self, task_id: _Optional[str] = ..., outcome: _Optional[_Union[TaskOutcome, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class ConnectResponse(_message.Message):
    __slots__ = ("welcome", "task", "cancel")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    task: Task
    cancel: CancelTask
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., task: _Optional[_Union[Task, _Mapping]] = ..., cancel: _Optional[_Union[CancelTask, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "server_version", "heartbeat_interval_s", "max_chunk_bytes", "max_update_bytes")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_UPDATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    server_version: str
    heartbeat_interval_s: float
    max_chunk_bytes: int
    max_update_bytes: int
    def __init__(self, protocol: _Optional[int] = ..., server_version: _Optional[str] = ..., heartbeat_interval_s: _Optional[float] = ..., max_chunk_bytes: _Optional[int] = ..., max_update_bytes: _Optional[int] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("task_id", "job_id", "round_number", "model_digest", "model_bytes", "initial_seed", "spec_json", "training", "down_codec", "up_codec", "classes", "deadline_s", "steps")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_NUMBER_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    INITIAL_SEED_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    DOWN_CODEC_FIELD_NUMBER: _ClassVar[int]
    UP_CODEC_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    job_id: str
    round_number: int
    model_digest: str
    model_bytes: int
    initial_seed: int
    spec_json: str
    training: TrainingConfig
    down_codec: str
    up_codec: str
    classes: _containers.RepeatedScalarFieldContainer[str]
    deadline_s: float
    steps: _containers.RepeatedCompositeFieldContainer[ModelStep]
    def __init__(self, task_id: _Optional[str] = ..., job_id: _Optional[str] = ..., round_number: _Optional[int] = ..., model_digest: _Optional[str] = ..., model_bytes: _Optional[int] = ..., initial_seed: _Optional[int] = ..., spec_json: _Optional[str] = ..., training: _Optional[_Union[TrainingConfig, _Mapping]] = ..., down_codec: _Optional[str] = ..., up_codec: _Optional[str] = ..., classes: _Optional[_Iterable[str]] = ..., deadline_s: _Optional[float] = ..., steps: _Optional[_Iterable[_Union[ModelStep, _Mapping]]] = ...) -> None: ...

class ModelStep(_message.Message):
    __slots__ = ("base_digest", "digest", "num_bytes")
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    base_digest: bytes
    digest: bytes
    num_bytes: int
    def __init__(self, base_digest: _Optional[bytes] = ..., digest: _Optional[bytes] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class TrainingConfig(_message.Message):
    __slots__ = ("preset", "optimizer", "batch_size", "local_steps", "step_scale", "seed", "statistics_batches", "proximal_mu")
    PRESET_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_SCALE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_BATCHES_FIELD_NUMBER: _ClassVar[int]
    PROXIMAL_MU_FIELD_NUMBER: _ClassVar[int]
    preset: str
    optimizer: str
    batch_size: int
    local_steps: int
    step_scale: float
    seed: int
    statistics_batches: int
    proximal_mu: float
    def __init__(self, preset: _Optional[str] = ..., optimizer: _Optional[str] = ..., batch_size: _Optional[int] = ..., local_steps: _Optional[int] = ..., step_scale: _Optional[float] = ..., seed: _Optional[int] = ..., statistics_batches: _Optional[int] = ..., proximal_mu: _Optional[float] = ...) -> None: ...

class CancelTask(_message.Message):
    __slots__ = ("task_id", "reason")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    reason: str
    def __init__(self, task_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class DownloadModelRequest(_message.Message):
    __slots__ = ("device_id", "model_digest", "offset")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    model_digest: str
    offset: int
    def __init__(self, device_id: _Optional[str] = ..., model_digest: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class DownloadModelResponse(_message.Message):
    __slots__ = ("offset", "data", "total_bytes")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    total_bytes: int
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class SubmitUpdateRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: UpdateHeader
    chunk: UpdateChunk
    def __init__(self, header: _Optional[_Union[UpdateHeader, _Mapping]] = ..., chunk: _Optional[_Union[UpdateChunk, _Mapping]] = ...) -> None: ...

class UpdateHeader(_message.Message):
    __slots__ = ("device_id", "task_id", "job_id", "round_number", "model_digest", "update_digest", "total_bytes", "num_examples", "codec", "metrics")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_NUMBER_FIELD_NUMBER: _ClassVar[int]
    MODEL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    UPDATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    task_id: str
    job_id: str
    round_number: int
    model_digest: str
    update_digest: str
    total_bytes: int
    num_examples: int
    codec: str
    metrics: UpdateMetrics
    def __init__(self, device_id: _Optional[str] = ..., task_id: _Optional[str] = ..., job_id: _Optional[str] = ..., round_number: _Optional[int] = ..., model_digest: _Optional[str] = ..., update_digest: _Optional[str] = ..., total_bytes: _Optional[int] = ..., num_examples: _Optional[int] = ..., codec: _Optional[str] = ..., metrics: _Optional[_Union[UpdateMetrics, _Mapping]] = ...) -> None: ...

class UpdateMetrics(_message.Message):
    __slots__ = ("loss", "accuracy", "steps", "seconds", "peak_pss_bytes", "downloaded_bytes", "training_seconds")
    LOSS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEAK_PSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    DOWNLOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRAINING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    loss: float
    accuracy: float
    steps: int
    seconds: float
    peak_pss_bytes: int
    downloaded_bytes: int
    training_seconds: float
    def __init__(self, loss: _Optional[float] = ..., accuracy: _Optional[float] = ..., steps: _Optional[int] = ..., seconds: _Optional[float] = ..., peak_pss_bytes: _Optional[int] = ..., downloaded_bytes: _Optional[int] = ..., training_seconds: _Optional[float] = ...) -> None: ...

class UpdateChunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class SubmitUpdateResponse(_message.Message):
    __slots__ = ("status", "reason")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    status: SubmitStatus
    reason: str
    def __init__(self, status: _Optional[_Union[SubmitStatus, str]] = ..., reason: _Optional[str] = ...) -> None: ...
