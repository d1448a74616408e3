{{- define "parakeet.name" -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "parakeet.labels" -}}
app.kubernetes.io/name: parakeet
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "parakeet.selector" -}}
app.kubernetes.io/name: parakeet
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "parakeet.image" -}}
{{- $image := .image -}}
{{- if $image.digest -}}
{{ printf "%s@%s" $image.repository $image.digest }}
{{- else -}}
{{ printf "%s:%s" $image.repository (default .root.Chart.AppVersion $image.tag) }}
{{- end -}}
{{- end -}}

{{- define "parakeet.serviceAccount" -}}
{{- default (include "parakeet.name" .) .Values.serviceAccount.name -}}
{{- end -}}

{{/* What cannot work is refused when the chart is rendered, with a sentence. */}}
{{- define "parakeet.check" -}}
{{- if not (or .Values.auth.existingSecret .Values.auth.none) -}}
{{- fail "auth.existingSecret is empty: name a Secret with the keys file, or say auth.none=true to serve anybody who reaches the ports." -}}
{{- end -}}
{{- if not .Values.redis.existingSecret -}}
{{- fail "redis.existingSecret is empty: name a Secret with the keys ingress-url and worker-url." -}}
{{- end -}}
{{- if and .Values.worker.keda.enabled (lt (int .Values.worker.keda.minReplicas) 1) -}}
{{- fail "worker.keda.minReplicas is less than 1: with no worker at all nothing keeps the group that KEDA reads." -}}
{{- end -}}
{{- if and .Values.worker.keda.enabled (not .Values.worker.keda.redisAddress) -}}
{{- fail "worker.keda.redisAddress is empty: KEDA needs host:port of Redis." -}}
{{- end -}}
{{- if and .Values.worker.keda.enabled (lt (int .Values.worker.keda.maxReplicas) (int .Values.worker.keda.minReplicas)) -}}
{{- fail "worker.keda.maxReplicas is less than worker.keda.minReplicas." -}}
{{- end -}}
{{- if and .Values.worker.keda.enabled (lt (int .Values.worker.keda.streamsPerWorker) (int .Values.redis.shards)) -}}
{{- fail "worker.keda.streamsPerWorker is less than redis.shards: KEDA counts the streams of each shard, and no worker has less than one." -}}
{{- end -}}
{{- if and .Values.ingress.autoscaling.enabled (lt (int .Values.ingress.autoscaling.maxReplicas) (int .Values.ingress.autoscaling.minReplicas)) -}}
{{- fail "ingress.autoscaling.maxReplicas is less than ingress.autoscaling.minReplicas." -}}
{{- end -}}
{{- if has (int .Values.monitoring.port) (list 8000 (ternary 8765 8000 .Values.ingress.tcp.enabled)) -}}
{{- fail "monitoring.port is a port of clients: 8000 and, with ingress.tcp, 8765." -}}
{{- end -}}
{{- if and (gt (int .Values.worker.lanes) 1) (gt (add .Values.monitoring.port .Values.worker.lanes) 65535) -}}
{{- fail "monitoring.port leaves no ports for worker.lanes: each lane has one after it." -}}
{{- end -}}
{{- if and .Values.redis.tlsSecret .Values.redis.embedded.enabled -}}
{{- fail "redis.tlsSecret is set, but the embedded Valkey speaks no TLS: bring your own Redis, with redis.embedded.enabled=false." -}}
{{- end -}}
{{- if and (not .Values.redis.tlsSecret) (or .Values.redis.tlsServerName .Values.redis.tlsClientCertificate) -}}
{{- fail "redis.tlsServerName and redis.tlsClientCertificate need redis.tlsSecret." -}}
{{- end -}}
{{- if gt (int .Values.worker.maxStreams) (int .Values.maxStreams) -}}
{{- fail "worker.maxStreams is more than maxStreams, the streams of the whole cluster." -}}
{{- end -}}
{{- if and .Values.ingress.httpRoute.enabled (not .Values.ingress.httpRoute.host) -}}
{{- fail "ingress.httpRoute.host is empty." -}}
{{- end -}}
{{- end -}}

{{/* The largest body of a request: a recording, and what a form has around it. */}}
{{- define "parakeet.maxBody" -}}
{{ add .Values.ingress.uploads.maxMb 1 }}m
{{- end -}}

{{/* The port of the trace collector: that of its address, or its scheme's. */}}
{{- define "parakeet.tracePort" -}}
{{- $url := urlParse .Values.tracing.endpoint -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- default (ternary "443" "80" (eq $url.scheme "https")) $port -}}
{{- end -}}

{{/* Settings that both kinds of process share. */}}
{{- define "parakeet.sharedEnv" -}}
- name: PARAKEET_MAX_NUM_STREAMS
  # Helm has a number of seven digits as 1e+06.
  value: {{ .Values.maxStreams | int64 | quote }}
- name: PARAKEET_REDIS_SHARDS
  value: {{ .Values.redis.shards | quote }}
{{- if .Values.redis.embedded.enabled }}
# The release's own Valkey writes nothing down, so nothing of its last moments can be given back.
- name: PARAKEET_REDIS_LOSS_MS
  value: "0"
{{- end }}
- name: PARAKEET_LOG_FORMAT
  value: json
- name: PARAKEET_METRICS_PORT
  value: {{ .Values.monitoring.port | quote }}
- name: PARAKEET_METRICS_HOST
  value: 0.0.0.0
{{- if .Values.redis.tlsSecret }}
- name: PARAKEET_REDIS_TLS_CA
  value: /etc/parakeet/redis-tls/ca.crt
{{- if .Values.redis.tlsClientCertificate }}
- name: PARAKEET_REDIS_TLS_CERT
  value: /etc/parakeet/redis-tls/tls.crt
- name: PARAKEET_REDIS_TLS_KEY
  value: /etc/parakeet/redis-tls/tls.key
{{- end }}
{{- with .Values.redis.tlsServerName }}
- name: PARAKEET_REDIS_TLS_SERVER_NAME
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- with .Values.tracing.endpoint }}
- name: PARAKEET_TRACE_ENDPOINT
  value: {{ . | quote }}
- name: PARAKEET_TRACE_RATIO
  value: {{ $.Values.tracing.ratio | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "parakeet.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "parakeet.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Probes of the metrics port. periods: of 10 s, until the start counts as failed. */}}
{{- define "parakeet.probes" -}}
startupProbe:
  httpGet: {path: /startupz, port: metrics}
  periodSeconds: 10
  failureThreshold: {{ .periods }}
livenessProbe:
  httpGet: {path: /livez, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 1
{{- end -}}

{{- define "parakeet.spread" -}}
{{- if .root.Values.topologySpread.enabled }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "parakeet.selector" . | nindent 8 }}
{{- end }}
{{- end -}}
