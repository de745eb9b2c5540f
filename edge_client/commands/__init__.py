"""The subcommands of ``bitfleet-client``, one module each; ``add_parsers`` leaves what does it in ``act``."""
