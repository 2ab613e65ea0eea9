{{- define "sendoff.name" -}}
{{- printf "%s-%s" .root.Release.Name .service | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "sendoff.selector" -}}
app.kubernetes.io/name: sendoff
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .service }}
{{- end -}}

{{- define "sendoff.labels" -}}
{{ include "sendoff.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "sendoff.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The broker user of a service: the tracker's has no prefix. */}}
{{- define "sendoff.user" -}}
{{- if eq .service "tracker" -}}tracker{{- else if eq .service "migrate" -}}sendoff-ops
{{- else if eq .service "console" -}}upstream{{- else -}}sendoff-{{ .service }}{{- end -}}
{{- end -}}

{{/* Whether links are signed: by send and proof, and read by the tracker. */}}
{{- define "sendoff.signs" -}}
{{- if and (index .root.Values.settings "SENDOFF_TRACKER_URL") (has .service (list "send" "tracker")) -}}yes{{- end -}}
{{- end -}}

{{/* Whether it sets the policy of the broker. */}}
{{- define "sendoff.manages" -}}
{{- if and .root.Values.secrets.management (eq .service "migrate") -}}yes{{- end -}}
{{- end -}}

{{/* Which port a service listens on for others, beside that of metrics and health. */}}
{{- define "sendoff.port" -}}
{{- get (dict "tracker" "8025" "webhooks" "8026" "returned" "8024" "console" "8480") .service -}}
{{- end -}}

{{/* Seconds until a pod is killed: the process takes SENDOFF_SHUTDOWN_GRACE for its open work, then it cuts off what is
left (5 s) and closes its connections (5 s). */}}
{{- define "sendoff.grace" -}}
{{- add (index .Values.settings "SENDOFF_SHUTDOWN_GRACE" | default 30 | int) 15 -}}
{{- end -}}

{{- define "sendoff.environment" -}}
- {name: SENDOFF_AMQP_URL_FILE, value: /run/secrets/sendoff/broker}
{{- if not (has .service (list "returned" "webhooks")) }}{{/* They need no database. */}}
- {name: SENDOFF_DATABASE_URL_FILE, value: /run/secrets/sendoff/database}
{{- end }}
{{- if eq .service "send" }}
- {name: SENDOFF_SMTP_URL_FILE, value: /run/secrets/sendoff/relay}
{{- end }}
{{- if include "sendoff.manages" . }}
- {name: SENDOFF_MANAGEMENT_URL_FILE, value: /run/secrets/sendoff/management}
{{- end }}
{{- if include "sendoff.signs" . }}
- {name: SENDOFF_TRACKER_KEYS_FILE, value: /run/secrets/sendoff/tracker-keys}
{{- end }}
{{- if include "sendoff.port" . }}
- {name: {{ printf "SENDOFF_%s_HOST" (upper .service) }}, value: 0.0.0.0}
{{- end }}
{{- if eq .service "tracker" }}
- {name: SENDOFF_TRACKER_SPOOL, value: /var/lib/sendoff/tracker-spool}
{{- end }}
{{- if eq .service "returned" }}
- {name: SENDOFF_RETURNED_FOLDER, value: /var/lib/sendoff/returned-mail}
{{- end }}
{{- $settings := .root.Values.settings }}
{{- if not (include "sendoff.signs" .) }}{{/* Without its keys the address of the tracker is no setting that can stand. */}}
{{- $settings = omit $settings "SENDOFF_TRACKER_URL" }}
{{- end }}
{{- range $name, $value := merge (deepCopy (.of.env | default dict)) $settings }}
- {name: {{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end -}}

{{- define "sendoff.secrets" -}}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      - secret: {name: {{ .root.Values.secrets.broker }}, items: [{key: {{ include "sendoff.user" . }}, path: broker}]}
      {{- if not (has .service (list "returned" "webhooks")) }}
      - secret: {name: {{ .root.Values.secrets.database }}, items: [{key: {{ .role }}, path: database}]}
      {{- end }}
      {{- if eq .service "send" }}
      - secret: {name: {{ .root.Values.secrets.relay }}, items: [{key: url, path: relay}]}
      {{- end }}
      {{- if include "sendoff.manages" . }}
      - secret: {name: {{ .root.Values.secrets.management }}, items: [{key: url, path: management}]}
      {{- end }}
      {{- if include "sendoff.signs" . }}
      - secret: {name: {{ .root.Values.secrets.tracker }}, items: [{key: keys, path: tracker-keys}]}
      {{- end }}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- if .of.files }}
- name: files
  secret: {secretName: {{ .of.files }}, defaultMode: 0440}
{{- end }}
{{- end -}}

{{- define "sendoff.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false # its variables look like misspelt settings
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "sendoff.container" -}}
image: {{ include "sendoff.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
env: {{ include "sendoff.environment" . | nindent 2 }}
{{- end -}}
