"""The database's tables. The migrations under ``migrations/`` build the same; a test compares the two."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

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
    Index("ix_model_versions_payload_digest", "payload_digest"),
    Index("ix_model_versions_step_digest", "step_digest"),
)

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
