"""The database's tables. The migrations under ``migrations/`` build the same; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

jobs = Table(
    "jobs",
    metadata,
    Column("position", Integer, primary_key=True, autoincrement=True),
    Column("job_id", String(80), nullable=False, unique=True),
    Column("name", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("config_json", Text, nullable=False),
    Column("spec_json", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("reason", Text, nullable=False),
    Column("starts_at", Float),
    Column("idempotency_key", String(255)),
    Index("ix_jobs_idempotency_key", "idempotency_key", unique=True),
)

rounds = Table(
    "rounds",
    metadata,
    Column("job_id", ForeignKey("jobs.job_id"), primary_key=True),
    Column("round_number", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("opened_at", Float, nullable=False),
    Column("committed_at", Float),
    Column("cohort", JSON, nullable=False),
    Column("weights_digest", String(64)),
    Column("accuracy", Float),
    Column("loss", Float),
    Column("reason", Text, nullable=False),
    Column("collecting_since", Float),
    Column("collected_s", Float, nullable=False),
    Column("overhead_s", Float),
    Column("local_examples", BigInteger, nullable=False),
    Column("local_correct", BigInteger, nullable=False),
    Column("local_loss_sum", Float, nullable=False),
    Column("exchange", Integer, nullable=False),
    Column("exchange_step", String(16), nullable=False),
)

updates = Table(
    "updates",
    metadata,
    Column("job_id", ForeignKey("jobs.job_id"), primary_key=True),
    Column("round_number", Integer, primary_key=True, autoincrement=False),
    Column("device_id", String(64), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("update_digest", String(64)),
    Column("num_examples", BigInteger, nullable=False),
    Column("payload_bytes", BigInteger, nullable=False),
    Column("seconds", Float),
    Column("training_seconds", Float),
    Column("steps", Integer, nullable=False),
    Column("loss", Float),
    Column("peak_pss_bytes", BigInteger, nullable=False),
    Column("down_bytes", BigInteger, nullable=False),
    Column("up_bytes", BigInteger, nullable=False),
    Column("received_at", Float),
    Column("validation_examples", BigInteger, nullable=False),
    Column("validation_correct", BigInteger, nullable=False),
    Column("validation_loss", Float),
    Column("exchange_step", String(16), nullable=False),
    Column("joules", Float),
    Column("joules_source", String(16), nullable=False),
    Column("folded_by", String(64)),
)

steps = Table(
    "exchange_steps",
    metadata,
    Column("job_id", ForeignKey("jobs.job_id"), primary_key=True),
    Column("round_number", Integer, primary_key=True, autoincrement=False),
    Column("exchange", Integer, primary_key=True, autoincrement=False),
    Column("step", String(16), primary_key=True),
    Column("device_id", String(64), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    Column("received_at", Float, nullable=False),
)

versions = Table(
    "model_versions",
    metadata,
    Column("job_id", ForeignKey("jobs.job_id"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("codec", String(32), nullable=False),
    Column("payload_digest", String(64), nullable=False),
    Column("payload_bytes", BigInteger, nullable=False),
    Column("state_digest", String(64), nullable=False),
    Column("weights_digest", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("memory_digest", String(64)),
    Column("step_digest", String(64)),
    Column("step_bytes", BigInteger, nullable=False),
    Column("is_kept", Boolean, nullable=False),
    Column("is_step_kept", Boolean, nullable=False),
    Index("ix_model_versions_payload_digest", "payload_digest"),
    Index("ix_model_versions_step_digest", "step_digest"),
)

promotions = Table(
    "promotions",
    metadata,
    Column("position", Integer, primary_key=True, autoincrement=True),
    Column("job_id", ForeignKey("jobs.job_id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("promoted_at", Float, nullable=False),
    Column("promoted_by", String(160), nullable=False),
    Column("withdrawn_at", Float),
    Column("withdrawn_by", String(160)),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("backend_pid", Integer, nullable=False),
    Column("since", Float, nullable=False),
    Column("store", Text, nullable=False),
    Column("authority", String(80)),
)
"""What one replica does for all: by ``fence`` a transaction knows whether its replica still holds the lease."""

devices = Table(
    "devices",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("first_seen", Float, nullable=False),
    Column("last_seen", Float, nullable=False),
    Column("client_version", String(64), nullable=False),
    Column("classes", JSON, nullable=False),
    Column("input_shape", JSON, nullable=False),
    Column("num_examples", BigInteger, nullable=False),
    Column("isa", String(64), nullable=False),
    Column("machine", String(64), nullable=False),
    Column("threads", Integer, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("pss_bytes", BigInteger, nullable=False),
)

identities = Table(
    "device_identities",
    metadata,
    Column("device_id", String(64), primary_key=True),
    Column("key_digest", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("labels", JSON, nullable=False),
    Column("enrolled_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
)

tokens = Table(
    "enrolment_tokens",
    metadata,
    Column("token_id", String(16), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("labels", JSON, nullable=False),
    Column("uses_left", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
)

keys = Table(
    "api_keys",
    metadata,
    Column("key_id", String(16), primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("scope", String(16), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
    Index("ix_api_keys_digest", "digest", unique=True),
)

sessions = Table(
    "browser_sessions",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("key_digest", String(64), nullable=False),
    Column("ends_at", Float, nullable=False),
)

audit = Table(
    "audit_log",
    metadata,
    Column("position", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("actor", String(160), nullable=False),
    Column("action", Text, nullable=False),
    Column("origin", String(64), nullable=False),
    Column("detail", Text, nullable=False),
)
"""Triggers refuse to change or remove a row."""

schema_info = Table("schema_info", metadata, Column("oldest_reader", String(32), primary_key=True))
"""Its one row has the revision that a version must know at least to use this schema; no part of what is kept in it."""
