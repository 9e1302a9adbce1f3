"""The dashboards, as code: `python -m grafana.build` writes their JSON into `grafana/dashboards`."""

import warnings

# The classic model warns at import that there is a newer one, which older Grafanas cannot read.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Prefer using dashboardv2", DeprecationWarning)
    import grafana_foundation_sdk.builders.dashboard
    import grafana_foundation_sdk.builders.stat  # noqa: F401 - imports all the models, so that they have warned
