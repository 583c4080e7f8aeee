package plugin

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/grafana/grafana-plugin-sdk-go/backend/log"
)

// NewSlog returns a slog logger whose records go to Grafana's log through the SDK's logger, from level on. What is written to stderr by
// other means appears there as debug lines without structure.
func NewSlog(to log.Logger, level slog.Leveler) *slog.Logger {
	return slog.New(slogHandler{to: to, level: level})
}

// slogHandler is immutable; WithAttrs and WithGroup return a changed copy.
type slogHandler struct {
	to     log.Logger
	level  slog.Leveler
	prefix string // of keys: the open groups, each followed by a dot
}

func (h slogHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h slogHandler) Handle(ctx context.Context, r slog.Record) error {
	args := make([]any, 0, 2*r.NumAttrs())
	r.Attrs(func(a slog.Attr) bool {
		args = appendAttr(args, h.prefix, a)
		return true
	})
	to := h.to
	if log.ContextualAttributesFromContext(ctx) != nil {
		to = to.FromContext(ctx)
	}
	switch {
	case r.Level >= slog.LevelError:
		to.Error(r.Message, args...)
	case r.Level >= slog.LevelWarn:
		to.Warn(r.Message, args...)
	case r.Level >= slog.LevelInfo:
		to.Info(r.Message, args...)
	default:
		to.Debug(r.Message, args...)
	}
	return nil
}

func (h slogHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	var args []any
	for _, a := range attrs {
		args = appendAttr(args, h.prefix, a)
	}
	if len(args) > 0 {
		h.to = h.to.With(args...)
	}
	return h
}

func (h slogHandler) WithGroup(name string) slog.Handler {
	if name != "" {
		h.prefix += name + "."
	}
	return h
}

// appendAttr appends key and value; the attributes of a group are appended each with the group's name before theirs.
func appendAttr(args []any, prefix string, a slog.Attr) []any {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, member := range v.Group() {
			args = appendAttr(args, prefix, member)
		}
		return args
	}
	if a.Key == "" {
		return args
	}
	value := v.Any()
	switch x := value.(type) { // the SDK writes JSON …
	case error:
		value = x.Error() // … in which most errors are {}
	case time.Duration:
		value = x.String() // … and durations are nanoseconds, which Grafana shows as 8.57975145e+08
	}
	return append(args, prefix+a.Key, value)
}

// ParseLevel reads the setting log_level; what it does not know is info.
func ParseLevel(s string) slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(strings.TrimSpace(s))); err != nil {
		return slog.LevelInfo
	}
	return l
}
