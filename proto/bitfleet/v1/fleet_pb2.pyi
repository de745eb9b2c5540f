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
    DEVICE_STATE_PAUSED: _ClassVar[DeviceState]

class TaskOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_OUTCOME_UNSPECIFIED: _ClassVar[TaskOutcome]
    TASK_OUTCOME_DECLINED: _ClassVar[TaskOutcome]
    TASK_OUTCOME_FAILED: _ClassVar[TaskOutcome]
    TASK_OUTCOME_ABANDONED: _ClassVar[TaskOutcome]

class ExchangeStep(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXCHANGE_STEP_UNSPECIFIED: _ClassVar[ExchangeStep]
    EXCHANGE_STEP_KEYS: _ClassVar[ExchangeStep]
    EXCHANGE_STEP_SHARES: _ClassVar[ExchangeStep]
    EXCHANGE_STEP_MASKED: _ClassVar[ExchangeStep]
    EXCHANGE_STEP_REVEAL: _ClassVar[ExchangeStep]

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
DEVICE_STATE_PAUSED: DeviceState
TASK_OUTCOME_UNSPECIFIED: TaskOutcome
TASK_OUTCOME_DECLINED: TaskOutcome
TASK_OUTCOME_FAILED: TaskOutcome
TASK_OUTCOME_ABANDONED: TaskOutcome
EXCHANGE_STEP_UNSPECIFIED: ExchangeStep
EXCHANGE_STEP_KEYS: ExchangeStep
EXCHANGE_STEP_SHARES: ExchangeStep
EXCHANGE_STEP_MASKED: ExchangeStep
EXCHANGE_STEP_REVEAL: ExchangeStep
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
    __slots__ = ("classes", "input_shape", "num_examples", "any_image_shape", "needs_input_range")
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    INPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    ANY_IMAGE_SHAPE_FIELD_NUMBER: _ClassVar[int]
    NEEDS_INPUT_RANGE_FIELD_NUMBER: _ClassVar[int]
    classes: _containers.RepeatedScalarFieldContainer[str]
    input_shape: _containers.RepeatedScalarFieldContainer[int]
    num_examples: int
    any_image_shape: bool
    needs_input_range: bool
    def __init__(self, classes: _Optional[_Iterable[str]] = ..., input_shape: _Optional[_Iterable[int]] = ..., num_examples: _Optional[int] = ..., any_image_shape: _Optional[bool] = ..., needs_input_range: _Optional[bool] = ...) -> None: ...

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
    __slots__ = ("on_battery", "metered", "too_hot", "outside_hours")
    ON_BATTERY_FIELD_NUMBER: _ClassVar[int]
    METERED_FIELD_NUMBER: _ClassVar[int]
    TOO_HOT_FIELD_NUMBER: _ClassVar[int]
    OUTSIDE_HOURS_FIELD_NUMBER: _ClassVar[int]
    on_battery: bool
    metered: bool
    too_hot: bool
    outside_hours: bool
    def __init__(self, on_battery: _Optional[bool] = ..., metered: _Optional[bool] = ..., too_hot: _Optional[bool] = ..., outside_hours: _Optional[bool] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("state", "task_id", "step", "total_steps", "pss_bytes", "conditions", "temperature_c")
    STATE_FIELD_NUMBER: _ClassVar[int]
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    PSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_C_FIELD_NUMBER: _ClassVar[int]
    state: DeviceState
    task_id: str
    step: int
    total_steps: int
    pss_bytes: int
    conditions: Conditions
    temperature_c: float
    def __init__(self, state: _Optional[_Union[DeviceState, str]] = ..., task_id: _Optional[str] = ..., step: _Optional[int] = ..., total_steps: _Optional[int] = ..., pss_bytes: _Optional[int] = ..., conditions: _Optional[_Union[Conditions, _Mapping]] = ..., temperature_c: _Optional[float] = ...) -> None: ...

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
    __slots__ = ("welcome", "task", "cancel", "exchange")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    task: Task
    cancel: CancelTask
    exchange: ExchangeOrder
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., task: _Optional[_Union[Task, _Mapping]] = ..., cancel: _Optional[_Union[CancelTask, _Mapping]] = ..., exchange: _Optional[_Union[ExchangeOrder, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("task_id", "job_id", "round_number", "model_digest", "model_bytes", "initial_seed", "spec_json", "training", "down_codec", "up_codec", "classes", "deadline_s", "steps", "local_tensors", "quorum", "secure", "input_range", "download_url")
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
    LOCAL_TENSORS_FIELD_NUMBER: _ClassVar[int]
    QUORUM_FIELD_NUMBER: _ClassVar[int]
    SECURE_FIELD_NUMBER: _ClassVar[int]
    INPUT_RANGE_FIELD_NUMBER: _ClassVar[int]
    DOWNLOAD_URL_FIELD_NUMBER: _ClassVar[int]
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
    local_tensors: _containers.RepeatedScalarFieldContainer[str]
    quorum: int
    secure: SecureAggregation
    input_range: InputRange
    download_url: str
    def __init__(self, task_id: _Optional[str] = ..., job_id: _Optional[str] = ..., round_number: _Optional[int] = ..., model_digest: _Optional[str] = ..., model_bytes: _Optional[int] = ..., initial_seed: _Optional[int] = ..., spec_json: _Optional[str] = ..., training: _Optional[_Union[TrainingConfig, _Mapping]] = ..., down_codec: _Optional[str] = ..., up_codec: _Optional[str] = ..., classes: _Optional[_Iterable[str]] = ..., deadline_s: _Optional[float] = ..., steps: _Optional[_Iterable[_Union[ModelStep, _Mapping]]] = ..., local_tensors: _Optional[_Iterable[str]] = ..., quorum: _Optional[int] = ..., secure: _Optional[_Union[SecureAggregation, _Mapping]] = ..., input_range: _Optional[_Union[InputRange, _Mapping]] = ..., download_url: _Optional[str] = ...) -> None: ...

class InputRange(_message.Message):
    __slots__ = ("low", "high")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    low: _containers.RepeatedScalarFieldContainer[float]
    high: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, low: _Optional[_Iterable[float]] = ..., high: _Optional[_Iterable[float]] = ...) -> None: ...

class SecureAggregation(_message.Message):
    __slots__ = ("attempt", "min_members", "threshold", "degree", "weights", "clip", "scales", "privacy")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MIN_MEMBERS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    DEGREE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    min_members: int
    threshold: float
    degree: int
    weights: str
    clip: int
    scales: bytes
    privacy: DifferentialPrivacy
    def __init__(self, attempt: _Optional[int] = ..., min_members: _Optional[int] = ..., threshold: _Optional[float] = ..., degree: _Optional[int] = ..., weights: _Optional[str] = ..., clip: _Optional[int] = ..., scales: _Optional[bytes] = ..., privacy: _Optional[_Union[DifferentialPrivacy, _Mapping]] = ...) -> None: ...

class DifferentialPrivacy(_message.Message):
    __slots__ = ("mechanism", "clip", "noise_multiplier", "delta")
    MECHANISM_FIELD_NUMBER: _ClassVar[int]
    CLIP_FIELD_NUMBER: _ClassVar[int]
    NOISE_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    mechanism: str
    clip: float
    noise_multiplier: float
    delta: float
    def __init__(self, mechanism: _Optional[str] = ..., clip: _Optional[float] = ..., noise_multiplier: _Optional[float] = ..., delta: _Optional[float] = ...) -> None: ...

class ExchangeOrder(_message.Message):
    __slots__ = ("task_id", "attempt", "step", "num_members", "peers", "graph_seed")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_MEMBERS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    GRAPH_SEED_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    attempt: int
    step: ExchangeStep
    num_members: int
    peers: _containers.RepeatedCompositeFieldContainer[ExchangePeer]
    graph_seed: bytes
    def __init__(self, task_id: _Optional[str] = ..., attempt: _Optional[int] = ..., step: _Optional[_Union[ExchangeStep, str]] = ..., num_members: _Optional[int] = ..., peers: _Optional[_Iterable[_Union[ExchangePeer, _Mapping]]] = ..., graph_seed: _Optional[bytes] = ...) -> None: ...

class ExchangePeer(_message.Message):
    __slots__ = ("device_id", "keys", "sealed", "survived", "position")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    SURVIVED_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    keys: bytes
    sealed: bytes
    survived: bool
    position: int
    def __init__(self, device_id: _Optional[str] = ..., keys: _Optional[bytes] = ..., sealed: _Optional[bytes] = ..., survived: _Optional[bool] = ..., position: _Optional[int] = ...) -> None: ...

class ModelStep(_message.Message):
    __slots__ = ("base_digest", "digest", "num_bytes", "download_url")
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    DOWNLOAD_URL_FIELD_NUMBER: _ClassVar[int]
    base_digest: bytes
    digest: bytes
    num_bytes: int
    download_url: str
    def __init__(self, base_digest: _Optional[bytes] = ..., digest: _Optional[bytes] = ..., num_bytes: _Optional[int] = ..., download_url: _Optional[str] = ...) -> None: ...

class TrainingConfig(_message.Message):
    __slots__ = ("preset", "optimizer", "batch_size", "local_steps", "step_scale", "seed", "statistics_batches", "proximal_mu", "local_validation")
    PRESET_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    STEP_SCALE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_BATCHES_FIELD_NUMBER: _ClassVar[int]
    PROXIMAL_MU_FIELD_NUMBER: _ClassVar[int]
    LOCAL_VALIDATION_FIELD_NUMBER: _ClassVar[int]
    preset: str
    optimizer: str
    batch_size: int
    local_steps: int
    step_scale: float
    seed: int
    statistics_batches: int
    proximal_mu: float
    local_validation: float
    def __init__(self, preset: _Optional[str] = ..., optimizer: _Optional[str] = ..., batch_size: _Optional[int] = ..., local_steps: _Optional[int] = ..., step_scale: _Optional[float] = ..., seed: _Optional[int] = ..., statistics_batches: _Optional[int] = ..., proximal_mu: _Optional[float] = ..., local_validation: _Optional[float] = ...) -> None: ...

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
    __slots__ = ("device_id", "task_id", "job_id", "round_number", "model_digest", "update_digest", "total_bytes", "num_examples", "codec", "metrics", "step", "attempt")
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
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
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
    step: ExchangeStep
    attempt: int
    def __init__(self, device_id: _Optional[str] = ..., task_id: _Optional[str] = ..., job_id: _Optional[str] = ..., round_number: _Optional[int] = ..., model_digest: _Optional[str] = ..., update_digest: _Optional[str] = ..., total_bytes: _Optional[int] = ..., num_examples: _Optional[int] = ..., codec: _Optional[str] = ..., metrics: _Optional[_Union[UpdateMetrics, _Mapping]] = ..., step: _Optional[_Union[ExchangeStep, str]] = ..., attempt: _Optional[int] = ...) -> None: ...

class UpdateMetrics(_message.Message):
    __slots__ = ("loss", "accuracy", "steps", "seconds", "peak_pss_bytes", "downloaded_bytes", "training_seconds", "validation_examples", "validation_correct", "validation_loss", "joules", "joules_source")
    LOSS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEAK_PSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    DOWNLOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRAINING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_CORRECT_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_LOSS_FIELD_NUMBER: _ClassVar[int]
    JOULES_FIELD_NUMBER: _ClassVar[int]
    JOULES_SOURCE_FIELD_NUMBER: _ClassVar[int]
    loss: float
    accuracy: float
    steps: int
    seconds: float
    peak_pss_bytes: int
    downloaded_bytes: int
    training_seconds: float
    validation_examples: int
    validation_correct: int
    validation_loss: float
    joules: float
    joules_source: str
    def __init__(self, loss: _Optional[float] = ..., accuracy: _Optional[float] = ..., steps: _Optional[int] = ..., seconds: _Optional[float] = ..., peak_pss_bytes: _Optional[int] = ..., downloaded_bytes: _Optional[int] = ..., training_seconds: _Optional[float] = ..., validation_examples: _Optional[int] = ..., validation_correct: _Optional[int] = ..., validation_loss: _Optional[float] = ..., joules: _Optional[float] = ..., joules_source: _Optional[str] = ...) -> None: ...

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
