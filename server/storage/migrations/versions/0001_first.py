"""The first schema: jobs, rounds, updates, model versions, devices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _job(name: str) -> sa.ForeignKey:
    return sa.ForeignKey("jobs.job_id", name=name)


def upgrade() -> None:
    op.create_table(
        "devices",
        sa.Column("device_id", sa.String(64), nullable=False),
        sa.Column("first_seen", sa.Float(), nullable=False),
        sa.Column("last_seen", sa.Float(), nullable=False),
        sa.Column("client_version", sa.String(64), nullable=False),
        sa.Column("classes", sa.JSON(), nullable=False),
        sa.Column("input_shape", sa.JSON(), nullable=False),
        sa.Column("num_examples", sa.BigInteger(), nullable=False),
        sa.Column("isa", sa.String(64), nullable=False),
        sa.Column("machine", sa.String(64), nullable=False),
        sa.Column("threads", sa.Integer(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("pss_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", name="pk_devices"),
    )
    op.create_table(
        "jobs",
        sa.Column("position", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.String(80), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("config_json", sa.Text(), nullable=False),
        sa.Column("spec_json", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("finished_at", sa.Float()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_jobs"),
        sa.UniqueConstraint("job_id", name="uq_jobs_job_id"),
    )
    op.create_table(
        "model_versions",
        sa.Column("job_id", sa.String(80), _job("fk_model_versions_job_id"), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("codec", sa.String(32), nullable=False),
        sa.Column("payload_digest", sa.String(64), nullable=False),
        sa.Column("payload_bytes", sa.BigInteger(), nullable=False),
        sa.Column("state_digest", sa.String(64), nullable=False),
        sa.Column("weights_digest", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "version", name="pk_model_versions"),
    )
    op.create_index("ix_model_versions_payload_digest", "model_versions", ["payload_digest"])
    op.create_table(
        "rounds",
        sa.Column("job_id", sa.String(80), _job("fk_rounds_job_id"), nullable=False),
        sa.Column("round_number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("opened_at", sa.Float(), nullable=False),
        sa.Column("committed_at", sa.Float()),
        sa.Column("cohort", sa.JSON(), nullable=False),
        sa.Column("weights_digest", sa.String(64)),
        sa.Column("accuracy", sa.Float()),
        sa.Column("loss", sa.Float()),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "round_number", name="pk_rounds"),
    )
    op.create_table(
        "updates",
        sa.Column("job_id", sa.String(80), _job("fk_updates_job_id"), nullable=False),
        sa.Column("round_number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("device_id", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("update_digest", sa.String(64)),
        sa.Column("num_examples", sa.BigInteger(), nullable=False),
        sa.Column("payload_bytes", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float()),
        sa.Column("loss", sa.Float()),
        sa.Column("peak_pss_bytes", sa.BigInteger(), nullable=False),
        sa.Column("down_bytes", sa.BigInteger(), nullable=False),
        sa.Column("up_bytes", sa.BigInteger(), nullable=False),
        sa.Column("received_at", sa.Float()),
        sa.PrimaryKeyConstraint("job_id", "round_number", "device_id", name="pk_updates"),
    )


def downgrade() -> None:
    for table in ("updates", "rounds", "model_versions", "jobs", "devices"):
        op.drop_table(table)
