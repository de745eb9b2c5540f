"""Jobs as files that people write: read, changed from the command line, taken from templates, compared."""

from server.job_files.changes import apply_changes, parse_changes
from server.job_files.differences import Difference, differences
from server.job_files.reading import JobFile, load_job, parse_text, read_job_file
from server.job_files.safe_yaml import write_yaml
from server.job_files.templates import list_templates, read_template
from server.job_files.writing import as_written

__all__ = [
    "Difference",
    "JobFile",
    "apply_changes",
    "as_written",
    "differences",
    "list_templates",
    "load_job",
    "parse_changes",
    "parse_text",
    "read_job_file",
    "read_template",
    "write_yaml",
]
