{{- define "gunicorn-app.name" -}}
{{- .Values.name | default .Release.Name -}}
{{- end }}

{{- define "gunicorn-app.selector" -}}
app.kubernetes.io/name: {{ include "gunicorn-app.name" . }}
{{- end }}

{{- define "gunicorn-app.labels" -}}
{{ include "gunicorn-app.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "gunicorn-app.image" -}}
{{- if .Values.image.digest -}}
image: {{ printf "%s@%s" .Values.image.repository .Values.image.digest | quote }}
{{- else -}}
image: {{ printf "%s:%s" .Values.image.repository .Values.image.tag | quote }}
{{- end }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "gunicorn-app.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: ["ALL"]
{{- end }}

{{- define "gunicorn-app.tokenVariable" -}}
- name: OBSKIT_METRICS_BEARER_TOKEN_FILE
  value: /run/secrets/metrics/token
{{- end }}

{{- define "gunicorn-app.tokenMount" -}}
- name: metrics-token
  mountPath: /run/secrets/metrics
  readOnly: true
{{- end }}

{{- define "gunicorn-app.authorization" -}}
authorization:
  credentials:
    name: {{ . }}
    key: token
{{- end }}

{{- define "gunicorn-app.probe" -}}
httpGet:
  path: {{ .path }}
  port: metrics
periodSeconds: {{ .period }}
timeoutSeconds: 2
failureThreshold: {{ .failures }}
{{- end }}
