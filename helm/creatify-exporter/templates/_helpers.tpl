{{- define "creatify-exporter.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- /* Shorter than a label may be: a StatefulSet puts its hash behind it, the dashboards put their names. */ -}}
{{- define "creatify-exporter.fullname" -}}
{{- $name := include "creatify-exporter.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "creatify-exporter.selectorLabels" -}}
app.kubernetes.io/name: {{ include "creatify-exporter.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: exporter
{{- end -}}

{{- define "creatify-exporter.labels" -}}
{{- $own := include "creatify-exporter.selectorLabels" . | fromYaml -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_") -}}
{{- $_ := set $own "app.kubernetes.io/version" .Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .Release.Service -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "creatify-exporter" -}}
{{- toYaml (merge $own .Values.commonLabels) -}}
{{- end -}}

{{- /*
The metadata of an object. Takes `root`, and what is there of `name`, `namespace`, `labels`, `annotations`. The labels by
which objects find each other win over those of values.
*/ -}}
{{- define "creatify-exporter.metadata" -}}
{{- $own := include "creatify-exporter.labels" .root | fromYaml -}}
name: {{ default (include "creatify-exporter.fullname" .root) .name }}
namespace: {{ default .root.Release.Namespace .namespace }}
labels:
  {{- toYaml (merge $own (default dict .labels)) | nindent 2 }}
{{- with merge (deepCopy (default dict .annotations)) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "creatify-exporter.serviceAccountName" -}}
{{- $own := ternary (include "creatify-exporter.fullname" .) "default" .Values.serviceAccount.create -}}
{{- default $own .Values.serviceAccount.name -}}
{{- end -}}

{{- define "creatify-exporter.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- define "creatify-exporter.scheme" -}}
{{- ternary "https" "http" (and (ne .Values.web.config.existingSecret "") .Values.web.config.tls) -}}
{{- end -}}

{{- define "creatify-exporter.address" -}}
{{ include "creatify-exporter.fullname" . }}.{{ .Release.Namespace }}.svc:{{ .Values.service.port }}
{{- end -}}

{{- /*
The workspaces as a JSON list of `name`, `secret`, `idKey`, `keyKey`, `own` (the chart makes their secret, of `apiId` and
`apiKey`), and `settings` for the configuration file.
*/ -}}
{{- define "creatify-exporter.workspaces" -}}
{{- if and .Values.existingSecret .Values.workspaces -}}
{{- fail "existingSecret and workspaces exclude each other: name the secret in the entry of its workspace" -}}
{{- end -}}
{{- if not (or .Values.existingSecret .Values.workspaces) -}}
{{- fail "no keys: set existingSecret to the name of a secret with the keys api-id and api-key, or list workspaces" -}}
{{- end -}}
{{- $given := default (list (dict "existingSecret" .Values.existingSecret)) .Values.workspaces -}}
{{- $made := printf "%s-keys" (include "creatify-exporter.fullname" .) -}}
{{- $found := list -}}
{{- $names := list -}}
{{- range $index, $each := $given -}}
{{- $name := default "default" $each.name -}}
{{- if has $name $names -}}
{{- fail (printf "workspaces: two of them are named %q; their series would mix" $name) -}}
{{- end -}}
{{- $names = append $names $name -}}
{{- if not (or $each.existingSecret (and $each.apiId $each.apiKey)) -}}
{{- fail (printf "workspaces: %q has no keys: give existingSecret, or apiId and apiKey" $name) -}}
{{- end -}}
{{- if and $each.existingSecret (or $each.apiId $each.apiKey) -}}
{{- fail (printf "workspaces: %q has existingSecret and keys; keep one of them" $name) -}}
{{- end -}}
{{- $entry := dict "name" $name "own" (not $each.existingSecret) -}}
{{- $_ := set $entry "secret" (default $made $each.existingSecret) -}}
{{- $_ := set $entry "idKey" (ternary (default "api-id" $each.apiIdKey) (printf "api-id-%d" $index) (not $entry.own)) -}}
{{- $_ := set $entry "keyKey" (ternary (default "api-key" $each.apiKeyKey) (printf "api-key-%d" $index) (not $entry.own)) -}}
{{- $_ := set $entry "settings" (omit $each "name" "existingSecret" "apiIdKey" "apiKeyKey" "apiId" "apiKey") -}}
{{- $_ := set $entry "apiId" (default "" $each.apiId) -}}
{{- $_ := set $entry "apiKey" (default "" $each.apiKey) -}}
{{- $found = append $found $entry -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- /* The configuration file, as JSON, which is YAML too: the `toYaml` of Helm 3 writes 2000000 as 2e+06, which YAML 1.1 takes for a text. */ -}}
{{- define "creatify-exporter.config" -}}
{{- $workspaces := list -}}
{{- range $index, $each := include "creatify-exporter.workspaces" . | fromJsonArray -}}
{{- $folder := printf "/etc/creatify-exporter/keys/%d" $index -}}
{{- $keys := dict "api_id_file" (printf "%s/api-id" $folder) "api_key_file" (printf "%s/api-key" $folder) -}}
{{- $workspaces = append $workspaces (merge (dict "name" $each.name) $keys $each.settings) -}}
{{- end -}}
{{- $ledger := dict "url" "sqlite:////var/lib/creatify-exporter/ledger.db" -}}
{{- if .Values.ledger.existingUrlSecret -}}
{{- $ledger = dict "url_file" "/etc/creatify-exporter/ledger/url" -}}
{{- else if not .Values.persistence.enabled -}}
{{- $_ := set $ledger "history" "skip" -}}
{{- end -}}
{{- $config := dict "workspaces" $workspaces "ledger" (merge (deepCopy .Values.config.ledger) $ledger) -}}
{{- if .Values.config.fetch -}}{{- $_ := set $config "fetch" .Values.config.fetch -}}{{- end -}}
{{- if .Values.config.labels -}}{{- $_ := set $config "labels" .Values.config.labels -}}{{- end -}}
{{- if .Values.config.failure_reasons -}}{{- $_ := set $config "failure_reasons" .Values.config.failure_reasons -}}{{- end -}}
{{- toPrettyJson $config -}}
{{- end -}}

{{- /* The keys of which the chart makes a secret. */ -}}
{{- define "creatify-exporter.keys" -}}
{{- $keys := dict -}}
{{- range $each := include "creatify-exporter.workspaces" . | fromJsonArray -}}
{{- if $each.own -}}
{{- $_ := set $keys $each.idKey $each.apiId -}}
{{- $_ := set $keys $each.keyKey $each.apiKey -}}
{{- end -}}
{{- end -}}
{{- toYaml $keys -}}
{{- end -}}

{{- /* What a probe asks. The kubelet has no client certificate to show. Takes `root` and `path`. */ -}}
{{- define "creatify-exporter.probe" -}}
{{- if and .root.Values.web.config.existingSecret .root.Values.web.config.clientCertificates -}}
tcpSocket:
  port: metrics
{{- else -}}
httpGet:
  path: {{ .path }}
  port: metrics
  scheme: {{ include "creatify-exporter.scheme" .root | upper }}
{{- end -}}
{{- end -}}

{{- /*
The project's rule groups with the changes of `prometheusRule`, as YAML. Their texts hold templates of Prometheus, which pass
through as they are.
*/ -}}
{{- define "creatify-exporter.ruleGroups" -}}
{{- $groups := list -}}
{{- $alerts := dict -}}
{{- $thresholds := dict -}}
{{- range $path, $_ := .Files.Glob "files/rules/*.yaml" -}}
{{- range $group := ($.Files.Get $path | fromYaml).groups -}}
{{- $rules := list -}}
{{- range $rule := $group.rules -}}
{{- $kept := true -}}
{{- if $rule.alert -}}
{{- $_ := set $alerts $rule.alert true -}}
{{- $change := default dict (index $.Values.prometheusRule.alerts $rule.alert) -}}
{{- $kept = dig "enabled" true $change -}}
{{- $labels := merge (deepCopy (default dict $change.labels)) $.Values.prometheusRule.alertLabels $rule.labels -}}
{{- if $change.severity -}}{{- $_ := set $labels "severity" $change.severity -}}{{- end -}}
{{- $_ := set $rule "labels" $labels -}}
{{- if $change.for -}}{{- $_ := set $rule "for" $change.for -}}{{- end -}}
{{- else if hasPrefix "creatify:threshold:" $rule.record -}}
{{- $name := trimPrefix "creatify:threshold:" $rule.record -}}
{{- $_ := set $thresholds $name true -}}
{{- if hasKey $.Values.prometheusRule.thresholds $name -}}
{{- $_ := set $rule "expr" (printf "%s * workspace:creatify_list:known" (index $.Values.prometheusRule.thresholds $name | toJson)) -}}
{{- end -}}
{{- end -}}
{{- if $kept -}}{{- $rules = append $rules $rule -}}{{- end -}}
{{- end -}}
{{- if $rules -}}{{- $groups = append $groups (set $group "rules" $rules) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := .Values.prometheusRule.alerts -}}
{{- if not (hasKey $alerts $name) -}}
{{- fail (printf "prometheusRule.alerts: there is no alert %q; there are %s" $name (keys $alerts | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := .Values.prometheusRule.thresholds -}}
{{- if not (hasKey $thresholds $name) -}}
{{- fail (printf "prometheusRule.thresholds: there is no threshold %q; there are %s" $name (keys $thresholds | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- toYaml $groups -}}
{{- end -}}
