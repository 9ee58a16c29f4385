"""What every service needs: bootstrap, interceptors, errors, identity, configuration, telemetry."""
