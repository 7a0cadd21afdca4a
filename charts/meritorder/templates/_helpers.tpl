{{- define "meritorder.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* What all names begin with: the release's name, and the chart's unless it is in there. */}}
{{- define "meritorder.fullname" -}}
{{- $name := include "meritorder.name" . -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* For what has no namespace: two releases in two namespaces must not meet. */}}
{{- define "meritorder.clusterName" -}}
{{ include "meritorder.fullname" . }}:{{ .Release.Namespace }}
{{- end }}

{{- define "meritorder.selectorLabels" -}}
app.kubernetes.io/name: {{ include "meritorder.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "meritorder.labels" -}}
{{ include "meritorder.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: meritorder
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "meritorder.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "meritorder.operatorAccount" -}}
{{ .Values.operator.serviceAccount.name | default (printf "%s-operator" (include "meritorder.fullname" .)) }}
{{- end }}

{{- define "meritorder.routerAccount" -}}
{{ .Values.router.serviceAccount.name | default (printf "%s-router" (include "meritorder.fullname" .)) }}
{{- end }}

{{/* Secret with the router servers' certificate: written by the operator, or by cert-manager. */}}
{{- define "meritorder.serverSecret" -}}
{{ include "meritorder.fullname" . }}-router-tls
{{- end }}

{{/* Host name by which agents and other servers know the router servers. */}}
{{- define "meritorder.serverHost" -}}
{{ include "meritorder.fullname" . }}-router.{{ .Release.Namespace }}.svc
{{- end }}

{{/* A switch that may be `auto`: whether the API of the Prometheus Operator is there. Call with {root, switch}. */}}
{{- define "meritorder.monitored" -}}
{{- if eq (toString .switch) "auto" -}}
{{- if .root.Capabilities.APIVersions.Has "monitoring.coreos.com/v1" }}true{{ end -}}
{{- else if eq (toString .switch) "true" }}true{{ end -}}
{{- end }}

{{/* What Pods of all parts have alike: restricted Pod Security, and where they may run. Call with {root, part, component}. */}}
{{- define "meritorder.podSpec" -}}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with .part.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .part.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
affinity:
{{- with .part.affinity }}
  {{- toYaml . | nindent 2 }}
{{- else }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "meritorder.selectorLabels" . | nindent 14 }}
{{- end }}
topologySpreadConstraints:
{{- with .part.topologySpreadConstraints }}
  {{- toYaml . | nindent 2 }}
{{- else }}
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - topologyKey: {{ $key }}
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "meritorder.selectorLabels" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- with .part.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- define "meritorder.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
