#!/usr/bin/env bash
# A typical script for the textfile collector, without a ledger: bash textfile.sh URL FILE.
set -euo pipefail

curl --silent --fail "$1" | jq --raw-output '
  def quoted: gsub("\\\\"; "\\\\") | gsub("\""; "\\\"") | gsub("\n"; "\\n");
  (group_by([.model_name, .status])[]
    | "tasks{model=\"\(.[0].model_name | quoted)\",status=\"\(.[0].status)\"} \(length)"),
  (map(select(.status == "failed")) | group_by([.model_name, .failed_reason])[]
    | "tasks_failed{model=\"\(.[0].model_name | quoted)\",reason=\"\(.[0].failed_reason // "" | quoted)\"} \(length)"),
  (group_by(.model_name)[]
    | "credits_used{model=\"\(.[0].model_name | quoted)\"} \(map(.credits_used // 0) | add)")
' >"$2.new"
mv "$2.new" "$2"
