{{- /*
Completes and renders the values once, before a template reads them: null is replaced by the default, or by an empty map if users
define the map themselves; strings are rendered as templates. Every template begins with this. Prometheus' own templates, regular
expressions and the values of parent charts are left unchanged.
*/ -}}
{{- define "creatify-exporter.values" -}}
{{- if not (hasKey .Values "rendered") -}}
{{- $_ := include "creatify-exporter.restore" (dict "values" .Values "defaults" (.Files.Get "files/values.yaml" | fromYaml)) -}}
{{- range $key, $value := omit .Values "global" "extraManifests" -}}
{{- if or (contains "{{" (toJson $value)) (contains ":null" (toJson $value)) -}}
{{- $_ := set $.Values $key (include "creatify-exporter.render" (dict "value" $value "root" $) | fromJson).value -}}
{{- end -}}
{{- end -}}
{{- $_ := set .Values "rendered" true -}}
{{- end -}}
{{- end -}}

{{- define "creatify-exporter.restore" -}}
{{- $own := list "labels" "liveness" "podSecurityContext" "readiness" "resources" "securityContext" "startup" -}}
{{- range $key, $default := .defaults -}}
{{- $value := index $.values $key -}}
{{- if and (kindIs "invalid" $value) (has $key $own) -}}
{{- $_ := set $.values $key dict -}}
{{- else if kindIs "invalid" $value -}}
{{- $_ := set $.values $key $default -}}
{{- else if and (kindIs "map" $default) (not (has $key $own)) -}}
{{- $_ := include "creatify-exporter.restore" (dict "values" $value "defaults" $default) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Takes `value` and `root`; returns JSON with the rendered `value`, without null entries of maps. */ -}}
{{- define "creatify-exporter.render" -}}
{{- $found := .value -}}
{{- if kindIs "string" .value -}}
{{- $found = tpl .value .root -}}
{{- else if kindIs "slice" .value -}}
{{- $found = list -}}
{{- range .value -}}
{{- $found = append $found (include "creatify-exporter.render" (dict "value" . "root" $.root) | fromJson).value -}}
{{- end -}}
{{- else if kindIs "map" .value -}}
{{- $found = dict -}}
{{- range $key, $each := .value -}}
{{- if has $key (list "alertLabels" "alerts" "failure_reasons") -}}
{{- $_ := set $found $key $each -}}
{{- else if not (kindIs "invalid" $each) -}}
{{- $_ := set $found $key (include "creatify-exporter.render" (dict "value" $each "root" $.root) | fromJson).value -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- dict "value" $found | toJson -}}
{{- end -}}

{{- define "creatify-exporter.name" -}}
{{- default .Chart.Name .Values.nameOverride -}}
{{- end -}}

{{- /*
A name that is valid for every kind of object: unchanged if possible, otherwise changed and with a hash of the original, so that
two names never become one. At most 52 characters, because a StatefulSet appends its own hash.
*/ -}}
{{- define "creatify-exporter.objectName" -}}
{{- $name := regexReplaceAll "[^a-z0-9-]+" (lower .) "-" | trimAll "-" -}}
{{- if not (regexMatch "^[a-z]" $name) -}}{{- $name = printf "release-%s" $name -}}{{- end -}}
{{- if or (ne $name .) (gt (len $name) 52) -}}
{{- $name = printf "%s-%s" ($name | trunc 43 | trimAll "-") (sha256sum . | trunc 8) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- /* The release's name alone if it contains the chart's name, except under an alias: two aliases in one release need two names. */ -}}
{{- define "creatify-exporter.fullname" -}}
{{- $name := include "creatify-exporter.name" . -}}
{{- $own := or .Values.nameOverride (eq .Chart.Name "creatify-exporter") -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (and $own (contains $name .Release.Name)) -}}
{{- include "creatify-exporter.objectName" (default $full .Values.fullnameOverride) -}}
{{- end -}}

{{- define "creatify-exporter.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride -}}
{{- end -}}

{{- define "creatify-exporter.selectorLabels" -}}
app.kubernetes.io/name: {{ include "creatify-exporter.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: exporter
{{- end -}}

{{- /*
Labels that select only this exporter in its namespace. The workload's selector cannot change, and releases of the same name that
`namespaceOverride` puts into one namespace share it, as do aliases with the same `nameOverride`; a workload also knows its pods by
their owner.
*/ -}}
{{- define "creatify-exporter.ownLabels" -}}
{{ include "creatify-exporter.selectorLabels" . }}
creatify-exporter/name: {{ include "creatify-exporter.fullname" . | quote }}
{{- end -}}

{{- /* The labels of every object. Takes `root` and the object's additional `labels`; the chart's own take precedence. */ -}}
{{- define "creatify-exporter.labels" -}}
{{- $own := include "creatify-exporter.ownLabels" .root | fromYaml -}}
{{- $chart := printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" -}}
{{- $_ := set $own "helm.sh/chart" ($chart | trunc 63 | trimAll "-_.") -}}
{{- $_ := set $own "app.kubernetes.io/version" (.root.Chart.AppVersion | replace "+" "_" | trunc 63 | trimAll "-_.") -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "creatify-exporter" -}}
{{- $all := merge $own (default dict .labels) .root.Values.commonLabels -}}
{{- range $name, $value := $all -}}
{{- if not (regexMatch "^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$" $value) -}}
{{- fail (printf "the label %s cannot be %q: at most 63 letters, digits, '-', '_' and '.', the first and last a letter or digit" $name $value) -}}
{{- end -}}
{{- end -}}
{{- toYaml $all -}}
{{- end -}}

{{- /* The metadata of an object. Takes `root` and, optionally, `name`, `namespace`, `labels`, `annotations`. */ -}}
{{- define "creatify-exporter.metadata" -}}
name: {{ default (include "creatify-exporter.fullname" .root) .name | quote }}
namespace: {{ default (include "creatify-exporter.namespace" .root) .namespace | quote }}
labels:
  {{- include "creatify-exporter.labels" . | nindent 2 }}
{{- with merge (deepCopy (default dict .annotations)) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /*
The metadata of an object whose namespace is set in the values. There it may meet objects of releases in other namespaces, so its
name includes its own. Takes `root`, the `values` with `namespace`, `labels` and `annotations`, and a `suffix` or "".
*/ -}}
{{- define "creatify-exporter.guestMetadata" -}}
{{- $home := include "creatify-exporter.namespace" .root -}}
{{- $name := include "creatify-exporter.fullname" .root -}}
{{- if not (has .values.namespace (list "" $home)) -}}
{{- $name = printf "%s-%s-%s" $home $name (printf "%s/%s" $home $name | sha256sum | trunc 8) -}}
{{- end -}}
{{- include "creatify-exporter.metadata" (merge (dict "root" .root "name" (printf "%s%s" $name .suffix)) (pick .values "namespace" "labels" "annotations")) -}}
{{- end -}}

{{- define "creatify-exporter.serviceAccountName" -}}
{{- $own := ternary (include "creatify-exporter.fullname" .) "default" .Values.serviceAccount.create -}}
{{- default $own .Values.serviceAccount.name -}}
{{- end -}}

{{- /* A repository that begins with a host, by Docker's rules, needs no registry. */ -}}
{{- define "creatify-exporter.image" -}}
{{- $global := default dict .Values.global -}}
{{- $repository := .Values.image.repository -}}
{{- $registry := default .Values.image.registry $global.imageRegistry -}}
{{- if and $registry (not (regexMatch "^([^/]*[.:][^/]*|localhost)/" $repository)) -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" $registry) $repository -}}
{{- end -}}
{{- if .Values.image.digest -}}
{{ $repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ $repository }}:{{ default .Chart.AppVersion .Values.image.tag | replace "+" "_" }}
{{- end -}}
{{- end -}}

{{- define "creatify-exporter.imagePullSecrets" -}}
{{- $secrets := list -}}
{{- $global := default dict .Values.global -}}
{{- range concat (default list $global.imagePullSecrets) .Values.imagePullSecrets -}}
{{- $secrets = append $secrets (dict "name" (ternary . (get (ternary dict . (kindIs "string" .)) "name") (kindIs "string" .))) -}}
{{- end -}}
{{- with uniq $secrets -}}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- define "creatify-exporter.scheme" -}}
{{- ternary "https" "http" (and (ne .Values.web.config.existingSecret "") .Values.web.config.tls) -}}
{{- end -}}

{{- define "creatify-exporter.address" -}}
{{ include "creatify-exporter.fullname" . }}.{{ include "creatify-exporter.namespace" . }}.svc:{{ .Values.service.port }}
{{- end -}}

{{- /* More flags, except those that the rest of the chart must know about. */ -}}
{{- define "creatify-exporter.extraArgs" -}}
{{- $values := dict
  "--config.file" "config and workspaces"
  "--ledger.url" "ledger.existingUrlSecret"
  "--log.format" "log.format"
  "--log.level" "log.level"
  "--web.config.file" "web.config.existingSecret"
  "--web.external-url" "web.externalUrl"
  "--web.listen-address" "web.port"
  "--web.route-prefix" "web.externalUrl, and let the proxy cut the prefix off"
  "--web.systemd-socket" "web.port"
  "--web.telemetry-path" "web.telemetryPath"
-}}
{{- range .Values.extraArgs -}}
{{- $flag := regexFind "^[^=\\s]+" . -}}
{{- if hasKey $values $flag -}}
{{- fail (printf "extraArgs: probes, monitor and test would not know of %s; set %s" $flag (get $values $flag)) -}}
{{- end -}}
{{- end -}}
{{- toYaml .Values.extraArgs -}}
{{- end -}}

{{- /* The constraints from the values; by default, exporters that share a ledger run on different nodes. */ -}}
{{- define "creatify-exporter.topologySpreadConstraints" -}}
{{- $selector := dict "labelSelector" (dict "matchLabels" (include "creatify-exporter.selectorLabels" . | fromYaml)) -}}
{{- $given := .Values.topologySpreadConstraints -}}
{{- if and (not $given) .Values.ledger.existingUrlSecret -}}
{{- $given = list (dict "maxSkew" 1 "topologyKey" "kubernetes.io/hostname" "whenUnsatisfiable" "ScheduleAnyway" "matchLabelKeys" (list "pod-template-hash")) -}}
{{- end -}}
{{- $constraints := list -}}
{{- range $given -}}
{{- $constraints = append $constraints (merge (deepCopy .) $selector) -}}
{{- end -}}
{{- with $constraints -}}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- /*
The workspaces as a JSON list of `name`, `folder`, `secret`, `idKey`, `keyKey`, `own` (the chart creates the secret from `apiId` and
`apiKey`), and `settings` for the configuration file. Folders and keys are named after the workspace, not numbered: a pod that
outlives an upgrade sees the new secret and configuration, and must not use another workspace's keys.
*/ -}}
{{- define "creatify-exporter.workspaces" -}}
{{- if and .Values.existingSecret .Values.workspaces -}}
{{- fail "existingSecret and workspaces exclude each other: name the secret in the entry of its workspace" -}}
{{- end -}}
{{- if not (or .Values.existingSecret .Values.workspaces .Values.workspaces_from) -}}
{{- fail "no keys: set existingSecret to the name of a secret with the keys api-id and api-key, or list workspaces" -}}
{{- end -}}
{{- $given := .Values.workspaces -}}
{{- if .Values.existingSecret -}}
{{- $given = list (dict "existingSecret" .Values.existingSecret) -}}
{{- end -}}
{{- $made := printf "%s-keys" (include "creatify-exporter.fullname" .) -}}
{{- $found := list -}}
{{- $names := list -}}
{{- range $each := $given -}}
{{- $name := default "default" $each.name -}}
{{- $folder := include "creatify-exporter.objectName" $name -}}
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
{{- $entry := dict "name" $name "folder" $folder "own" (not $each.existingSecret) -}}
{{- $_ := set $entry "secret" (default $made $each.existingSecret) -}}
{{- $_ := set $entry "idKey" (ternary (default "api-id" $each.apiIdKey) (printf "%s-api-id" $folder) (not $entry.own)) -}}
{{- $_ := set $entry "keyKey" (ternary (default "api-key" $each.apiKeyKey) (printf "%s-api-key" $folder) (not $entry.own)) -}}
{{- $_ := set $entry "settings" (omit $each "name" "existingSecret" "apiIdKey" "apiKeyKey" "apiId" "apiKey") -}}
{{- $_ := set $entry "apiId" (default "" $each.apiId) -}}
{{- $_ := set $entry "apiKey" (default "" $each.apiKey) -}}
{{- $found = append $found $entry -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{- /* The configuration file, as JSON, which is also YAML: Helm 3's `toYaml` writes 2000000 as 2e+06, which is a string in YAML 1.1. */ -}}
{{- define "creatify-exporter.config" -}}
{{- $workspaces := list -}}
{{- range $each := include "creatify-exporter.workspaces" . | fromJsonArray -}}
{{- $folder := printf "/etc/creatify-exporter/keys/%s" $each.folder -}}
{{- $keys := dict "api_id_file" (printf "%s/api-id" $folder) "api_key_file" (printf "%s/api-key" $folder) -}}
{{- $workspaces = append $workspaces (merge (dict "name" $each.name) $keys $each.settings) -}}
{{- end -}}
{{- range concat $workspaces .Values.workspaces_from -}}
{{- if regexMatch "://[^/@:]*:[^/@$][^@]*@" (default "" .proxy_url) -}}
{{- fail "proxy_url: its password would be stored in a ConfigMap; write ${PROXY_PASSWORD}, and set that with extraEnv" -}}
{{- end -}}
{{- end -}}
{{- $ledger := dict "url" "sqlite:////var/lib/creatify-exporter/ledger.db" -}}
{{- if .Values.ledger.existingUrlSecret -}}
{{- $ledger = dict "url_file" "/etc/creatify-exporter/ledger/url" -}}
{{- else if not .Values.persistence.enabled -}}
{{- $_ := set $ledger "history" "skip" -}}
{{- end -}}
{{- $config := dict "workspaces" $workspaces "ledger" (merge (deepCopy .Values.config.ledger) $ledger) -}}
{{- if .Values.workspaces_from -}}{{- $_ := set $config "workspaces_from" .Values.workspaces_from -}}{{- end -}}
{{- if .Values.config.fetch -}}{{- $_ := set $config "fetch" .Values.config.fetch -}}{{- end -}}
{{- if .Values.config.labels -}}{{- $_ := set $config "labels" .Values.config.labels -}}{{- end -}}
{{- if .Values.config.failure_reasons -}}{{- $_ := set $config "failure_reasons" .Values.config.failure_reasons -}}{{- end -}}
{{- toPrettyJson $config -}}
{{- end -}}

{{- /* The keys for which the chart creates a secret. */ -}}
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

{{- /*
A probe of the container. The kubelet has no client certificate. Takes `root`, the probe's `name` and `timing`, and the `path`;
without timing there is no probe.
*/ -}}
{{- define "creatify-exporter.probe" -}}
{{- with .timing -}}
{{ $.name }}:
  {{- if and $.root.Values.web.config.existingSecret $.root.Values.web.config.clientCertificates }}
  tcpSocket:
    port: metrics
  {{- else }}
  httpGet:
    path: {{ $.path }}
    port: metrics
    scheme: {{ include "creatify-exporter.scheme" $.root | upper }}
  {{- end }}
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{- /*
The project's rule groups with the changes of `prometheusRule`, as YAML. Prometheus templates in them are left unchanged.
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
{{- $change := default dict (get $.Values.prometheusRule.alerts $rule.alert) -}}
{{- $kept = ne (get $change "enabled" | toString) "false" -}}
{{- $labels := dict -}}
{{- range $more := list $rule.labels $.Values.prometheusRule.alertLabels (default dict $change.labels) -}}
{{- range $label, $value := $more -}}
{{- if not (kindIs "invalid" $value) -}}{{- $_ := set $labels $label $value -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- if $change.severity -}}{{- $_ := set $labels "severity" $change.severity -}}{{- end -}}
{{- $_ := set $rule "labels" $labels -}}
{{- if $change.for -}}{{- $_ := set $rule "for" $change.for -}}{{- end -}}
{{- with $.Values.prometheusRule.grafanaUrl -}}
{{- $_ := set $rule.annotations "dashboard_url" (print (trimSuffix "/" .) $rule.annotations.dashboard_url) -}}
{{- end -}}
{{- else if hasPrefix "creatify:threshold:" $rule.record -}}
{{- $name := trimPrefix "creatify:threshold:" $rule.record -}}
{{- $_ := set $thresholds $name true -}}
{{- if hasKey $.Values.prometheusRule.thresholds $name -}}
{{- $value := index $.Values.prometheusRule.thresholds $name -}}
{{- if not (kindIs "string" $value) -}}{{- $value = toJson $value -}}{{- end -}}
{{- /* With --set, a fraction is a string. */ -}}
{{- if regexMatch "^[-+0-9.eE]+$" $value -}}{{- $value = printf "%s * workspace:creatify_list:known" $value -}}{{- end -}}
{{- $_ := set $rule "expr" $value -}}
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
